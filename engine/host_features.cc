// Source  userfaultfd(2), ioctl_userfaultfd(2): UFFDIO_API fails with EINVAL for a feature that is not known;
//         __builtin_cpu_supports asks xgetbv, too, so that what the kernel has turned off does not count
#include "engine/host_features.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdint>

#include "engine/base/io.h"
#include "engine/memory/page_map.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kFeatureWpAsync = 1 << 15;  // Debian 12's headers are older
constexpr unsigned long kUserModeOnly = 1;

std::string CpuLevel() {
  if (__builtin_cpu_supports("x86-64-v4") != 0) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3") != 0) return "x86-64-v3";
  if (__builtin_cpu_supports("x86-64-v2") != 0) return "x86-64-v2";
  return "x86-64-v1";
}

bool HasPagemapScan() {
  const Result<UniqueFd> self = OpenAt(AT_FDCWD, "/proc/self", O_PATH | O_DIRECTORY);
  const Result<PageMap> map = self.ok() ? PageMap::Open(self->get()) : self.status();
  return map.ok() && map->scans();
}

bool HasUserfaultfdWpAsync() {
  const UniqueFd fd(static_cast<int>(::syscall(
      SYS_userfaultfd, static_cast<unsigned long>(O_CLOEXEC | O_NONBLOCK) | kUserModeOnly)));
  uffdio_api api = {.api = UFFD_API, .features = kFeatureWpAsync, .ioctls = 0};
  return fd && ::ioctl(fd.get(), UFFDIO_API, &api) == 0;
}

}  // namespace

HostFeatures ReadHostFeatures() {
  utsname system = {};
  ::uname(&system);
  return {.cpu_level = CpuLevel(),
          .pagemap_scan = HasPagemapScan(),
          .userfaultfd_wp_async = HasUserfaultfdWpAsync(),
          .kernel_release = system.release};
}

}  // namespace stasis::engine
