#include "cri/checkpoint/tmpfs_mounts.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "archive/tmpfs_content.h"
#include "engine/base/io.h"
#include "engine/proc/mountinfo.h"

namespace stasis::cri {
namespace {

// Held in memory, and read while the container stands still.
constexpr std::uint64_t kMaxBytes = std::uint64_t{16} << 20;

}  // namespace

Status WriteTmpfsMounts(pid_t pid, const std::vector<std::string>& outside,
                        engine::ImageSink& images, std::vector<std::string>& notes) {
  const std::string proc = "/proc/" + std::to_string(pid);
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, proc + "/mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<engine::Mount> mounts, engine::ParseMountinfo(text));
  std::set<std::uint32_t> written;
  for (const engine::Mount& mount : mounts) {
    const bool is_outside = std::ranges::find(outside, mount.mountpoint) != outside.end();
    if (mount.fs_type != "tmpfs" || mount.root != "/" || is_outside) continue;
    // As the kernel packs it, and as root_dev of the mount in the images is.
    const std::uint32_t device = mount.dev_major << 20 | mount.dev_minor;
    if (!written.insert(device).second) continue;
    ASSIGN_OR_RETURN(const UniqueFd folder,
                     OpenAt(AT_FDCWD, proc + "/root" + mount.mountpoint, O_RDONLY | O_DIRECTORY));
    struct stat st = {};
    if (::fstat(folder.get(), &st) != 0) {
      return SyscallError(errno, "fstat " + mount.mountpoint);
    }
    if (st.st_dev != makedev(mount.dev_major, mount.dev_minor)) continue;  // mounted over
    const Result<std::string> content = archive::ReadTmpfsContent(folder.get(), kMaxBytes);
    if (content.status().code() == StatusCode::kResourceExhausted) {
      notes.push_back(mount.mountpoint +
                      ": too large for a copy, without which CRIU restores nothing");
      continue;
    }
    if (!content.ok()) return Annotate(content.status(), mount.mountpoint);
    RETURN_IF_ERROR(images.Put("tmpfs-dev-" + std::to_string(device) + ".tar.gz.img", *content));
  }
  return OkStatus();
}

}  // namespace stasis::cri
