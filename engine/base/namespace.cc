#include "engine/base/namespace.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>
#include <thread>

#include "engine/base/io.h"

namespace stasis {

Status InNamespace(int ns_fd, int type, const std::function<Status()>& step) {
  Status status = Internal("the thread did not run");
  try {
    std::thread([&] {
      if (::setns(ns_fd, type) != 0) {
        status = SyscallError(errno, "setns into a namespace of the tree");
      } else {
        status = step();
      }
    }).join();
  } catch (const std::system_error& error) {  // no more threads are to be had
    return SyscallError(error.code().value(), "start a thread");
  }
  return status;
}

Result<UniqueFd> MakeNetwork(int ns_fd) {
  UniqueFd made;
  RETURN_IF_ERROR(InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    if (::unshare(CLONE_NEWNET) != 0) return SyscallError(errno, "unshare");
    ASSIGN_OR_RETURN(made, OpenAt(AT_FDCWD, "/proc/thread-self/ns/net", O_RDONLY));
    return OkStatus();
  }));
  return made;
}

bool InFirstPidNamespace() {
  constexpr ino_t kFirst = 0xEFFFFFFC;  // PROC_PID_INIT_INO in include/linux/proc_ns.h
  struct stat st = {};
  return ::stat("/proc/self/ns/pid", &st) == 0 && st.st_ino == kFirst;
}

}  // namespace stasis
