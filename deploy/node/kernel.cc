// What an installation tries before it sends a kubelet through an agent that would be of no use there.
//
//   PAGEMAP_SCAN  which pages are in use (Documentation/admin-guide/mm/pagemap.rst, Linux 6.7); any process
//                 may ask it of itself
//   kcmp          which descriptors are one open file (kcmp(2), CONFIG_KCMP); EPERM where a seccomp filter
//                 is in between
//
// `stasis check`, which the agent's rights are needed for, tries the rest.
#include "deploy/node/kernel.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "engine/base/io.h"

namespace stasis::node {
namespace {

struct ScanArgument {  // struct pm_scan_arg, newer than Debian 12's headers
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgument);

Status Missing(const std::string& what) {
  utsname host{};
  (void)::uname(&host);  // cannot fail with memory of our own
  return FailedPrecondition(
      "this node's kernel, Linux " + std::string(host.release) + ", " + what +
      "; nothing was changed. Take a newer one (docs/install.md, What a node needs)");
}

}  // namespace

Status CheckKernel() {
  ASSIGN_OR_RETURN(const UniqueFd pagemap, OpenAt(AT_FDCWD, "/proc/self/pagemap", O_RDONLY));
  ScanArgument argument{};
  argument.size = sizeof(argument);
  if (::ioctl(pagemap.get(), kPagemapScan, &argument) < 0 && errno != EPERM) {
    return Missing("has no PAGEMAP_SCAN (Linux 6.7), without which no memory is checkpointed");
  }
  const pid_t self = ::getpid();
  if (::syscall(SYS_kcmp, self, self, KCMP_VM, 0, 0) != 0 && errno != EPERM) {
    return Missing("has no kcmp(2) (CONFIG_KCMP), without which no descriptor is checkpointed");
  }
  return OkStatus();
}

}  // namespace stasis::node
