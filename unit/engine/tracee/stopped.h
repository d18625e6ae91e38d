// A process that stands still under its tracer, the test.
#pragma once

#include <sys/ptrace.h>

#include <chrono>

#include "engine/tracee/tracee.h"

namespace stasis::engine {

inline Result<Tracee> Stopped(pid_t pid) {
  ASSIGN_OR_RETURN(Tracee tracee, Tracee::Seize(pid, PTRACE_O_TRACESYSGOOD));
  RETURN_IF_ERROR(tracee.Interrupt());
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  RETURN_IF_ERROR(WaitForStop(pid, give_up).status());
  return tracee;
}

}  // namespace stasis::engine
