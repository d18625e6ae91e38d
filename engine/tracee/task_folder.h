// Who belongs to a process, by /proc.
#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

namespace stasis::engine {

/// "/proc/PID/task/TID".
std::string TaskFolder(pid_t pid, pid_t tid);
/// The threads of `pid`; none when it is gone. They may change at once unless they stand still, as the children do.
std::vector<pid_t> ThreadsOf(pid_t pid);
/// True for a thread that the kernel itself has made in `pid`, and that runs no code of it: a worker of io_uring.
bool IsKernelWorker(pid_t pid, pid_t tid);
/// What is in a file `children`, proc_pid_task_children(5).
std::vector<pid_t> ParseChildren(std::string_view text);

}  // namespace stasis::engine
