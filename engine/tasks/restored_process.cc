#include "engine/tasks/restored_process.h"

#include <signal.h>

#include <string>

#include "engine/base/io.h"
#include "engine/proc/task.h"

namespace stasis::engine {

Result<OneRun> RunOf(const RestoredProcess& process) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "status"));
  ASSIGN_OR_RETURN(const TaskStatus status, ParseTaskStatus(text));
  if (status.ns_pid.empty()) return Unimplemented("/proc/PID/status has no NSpid");
  return OneRun{.signal = SIGWINCH, .ids = {status.ns_pid.back(), status.ns_pid.back()}};
}

}  // namespace stasis::engine
