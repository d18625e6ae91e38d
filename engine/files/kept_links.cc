// Source  link(2), linkat(2) by /proc/self/fd, statvfs(3), openat2(2); tested on 6.18 with ext4 and tmpfs
// Rule    linkat(2) with AT_SYMLINK_FOLLOW names an inode that is open by its link in /proc, as long as it
//         has another name: from no name at all there is no way back (fs/namei.c, I_LINKABLE).
// Rule    A link is of the same mount, not only of the same file system.
#include "engine/files/kept_links.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>

#include "engine/files/description.h"

namespace stasis::engine {
namespace {

std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

Result<UniqueFd> OpenFolder(int root_fd, const std::string& path) {
  open_how how = {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  UniqueFd fd(
      static_cast<int>(::syscall(SYS_openat2, root_fd, FolderOf(path).c_str(), &how, sizeof(how))));
  if (!fd) return SyscallError(errno, "open the folder of " + path);
  return fd;
}

// Of another checkpoint a link may be there still.
std::string NewName() {
  std::random_device random;
  return std::string(kLinkPrefix) + std::to_string(random()) + std::to_string(random());
}

}  // namespace

Result<std::string> KeptLinks::Plan(int root_fd, const std::string& path, int fd) {
  Link link;
  ASSIGN_OR_RETURN(link.folder, OpenFolder(root_fd, path));
  struct stat file = {}, folder = {};
  struct statvfs fs = {};
  if (::fstat(fd, &file) != 0 || ::fstat(link.folder.get(), &folder) != 0 ||
      ::fstatvfs(link.folder.get(), &fs) != 0) {
    return SyscallError(errno, "stat " + path);
  }
  if ((fs.f_flag & ST_RDONLY) != 0 || file.st_dev != folder.st_dev) {
    return Unimplemented(path + ": no link can be made beside it");
  }
  ASSIGN_OR_RETURN(link.file, Duplicate(fd));
  link.name = NewName();
  std::string planned = FolderOf(path) + link.name;
  links_.push_back(std::move(link));
  return planned;
}

Status KeptLinks::MakeInMemory() {
  const auto rest = std::ranges::stable_partition(links_, [](const Link& link) {
    struct statfs fs = {};
    return ::fstatfs(link.folder.get(), &fs) == 0 && fs.f_type == TMPFS_MAGIC;
  });
  return MakeTo(links_.size() - rest.size());
}

Status KeptLinks::Make() { return MakeTo(links_.size()); }

Status KeptLinks::MakeTo(std::size_t count) {
  return AsRootOf(ids_, [&] { return LinkTo(count); });
}

Status KeptLinks::LinkTo(std::size_t count) {
  for (; made_ < count; ++made_) {
    const Link& link = links_[made_];
    const std::string magic = "/proc/self/fd/" + std::to_string(link.file.get());
    if (::linkat(AT_FDCWD, magic.c_str(), link.folder.get(), link.name.c_str(),
                 AT_SYMLINK_FOLLOW) != 0) {
      return SyscallError(errno, "link a file that lost its name as " + link.name);
    }
  }
  return OkStatus();
}

void KeptLinks::TakeBack() {
  for (; made_ > 0; --made_) {
    const Link& link = links_[made_ - 1];
    (void)::unlinkat(link.folder.get(), link.name.c_str(), 0);  // its folder may be gone by now
  }
}

Status RemoveKeptLink(int root_fd, const std::string& path) {
  const std::string name = path.substr(path.rfind('/') + 1);
  if (!name.starts_with(kLinkPrefix)) return OkStatus();
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder(root_fd, path));
  if (::unlinkat(folder.get(), name.c_str(), 0) != 0 && errno != ENOENT) {
    return SyscallError(errno, "remove " + path);
  }
  return OkStatus();
}

}  // namespace stasis::engine
