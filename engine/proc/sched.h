// Text of /proc/TID/{sched,syscall} into structs. No system call is made here.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/base/status.h"

namespace stasis::engine {

/// /proc/TID/sched, proc_sched_show_task() in kernel/sched/debug.c.
struct SchedulerText {
  /// When the task last began to run, or was last seen running, on its processor's own clock.
  std::chrono::nanoseconds exec_start{0};
  std::uint64_t voluntary_switches = 0;
};
Result<SchedulerText> ParseScheduler(std::string_view text);

/// /proc/TID/syscall, proc_pid_syscall(5): the system call in which a task sleeps.
struct SyscallText {
  long number = 0;
  std::array<std::uint64_t, 6> arguments = {};
};
/// Nothing for a task that runs or sleeps elsewhere.
std::optional<SyscallText> ParseSyscall(std::string_view text);

}  // namespace stasis::engine
