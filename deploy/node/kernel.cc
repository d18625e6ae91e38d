// What an installation tries before it sends a kubelet through an agent that would be of no use there.
//
//   kcmp   which descriptors are one open file (kcmp(2), CONFIG_KCMP); EPERM where a seccomp filter is in between
//
// `stasis check`, which the agent's rights are needed for, tries the rest.
#include "deploy/node/kernel.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace stasis::node {
namespace {

Status Missing(const std::string& what) {
  utsname host{};
  (void)::uname(&host);  // cannot fail with memory of our own
  return FailedPrecondition(
      "this node's kernel, Linux " + std::string(host.release) + ", " + what +
      "; nothing was changed. Take a newer one (docs/install.md, What a node needs)");
}

}  // namespace

Status CheckKernel() {
  const pid_t self = ::getpid();
  if (::syscall(SYS_kcmp, self, self, KCMP_VM, 0, 0) != 0 && errno != EPERM) {
    return Missing("has no kcmp(2) (CONFIG_KCMP), without which no descriptor is checkpointed");
  }
  return OkStatus();
}

}  // namespace stasis::node
