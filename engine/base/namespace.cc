#include "engine/base/namespace.h"

#include <sched.h>

#include <cerrno>
#include <thread>

namespace stasis {

Status InNamespace(int ns_fd, int type, const std::function<Status()>& step) {
  Status status = Internal("the thread did not run");
  std::thread([&] {
    if (::setns(ns_fd, type) != 0) {
      status = SyscallError(errno, "setns into a namespace of the tree");
    } else {
      status = step();
    }
  }).join();
  return status;
}

}  // namespace stasis
