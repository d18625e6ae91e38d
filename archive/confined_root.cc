#include "archive/confined_root.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "archive/folder_names.h"
#include "archive/member_name.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr int kMaxDepth = 512;  // one descriptor a level
constexpr int kTries = 16;

Status OnMount(const std::string& path) {
  return MakeStatus(StatusCode::kOutOfRange, "/" + Printable(path) + " lies on a mount");
}

/// (parent, name) of a relative path; the parent of "a" is "".
std::pair<std::string, std::string> Split(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return {"", path};
  return {path.substr(0, slash), path.substr(slash + 1)};
}

Result<struct statx> Stat(int folder, const std::string& name, const std::string& path) {
  struct statx st = {};
  if (::statx(folder, name.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE | STATX_INO,
              &st) != 0) {
    return SyscallError(errno, "stat /" + Printable(path));
  }
  return st;
}

/// statx(2), STATX_ATTR_MOUNT_ROOT (Linux 5.8): something of ours or the runtime's is mounted
/// there.
bool IsMountRoot(const struct statx& st) {
  return (st.stx_attributes & st.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) != 0;
}

std::pair<dev_t, ino_t> Identity(const struct statx& st) {
  return {static_cast<dev_t>(st.stx_dev_major) << 32 | st.stx_dev_minor, st.stx_ino};
}

}  // namespace

ConfinedRoot::ConfinedRoot(int root_fd, const std::vector<std::string>& leave_out)
    : root_fd_(root_fd), left_out_(leave_out) {}

Result<Place> ConfinedRoot::Find(const std::string& path, Parents parents) {
  RETURN_IF_ERROR(CheckRelativePath(path));
  const auto [parent, name] = Split(path);
  if (!folder_ || folder_is_stale_ || parent != folder_path_) {
    folder_.Reset();
    ASSIGN_OR_RETURN(folder_, parents == Parents::kMake ? MakeFolder(parent) : OpenFolder(parent));
    ASSIGN_OR_RETURN(folder_real_path_, PathOf(folder_.get()));
    folder_path_ = parent;
    folder_is_stale_ = false;
  }
  Place place = {.folder = folder_.get(),
                 .name = name,
                 .path = folder_real_path_.empty() ? name : folder_real_path_ + "/" + name};
  if (left_out_.Covers(place.path)) return OnMount(place.path);
  if (const Result<struct statx> st = Stat(place.folder, name, place.path);
      st.ok() && IsMountRoot(*st)) {
    return OnMount(place.path);
  }
  return place;
}

Result<UniqueFd> ConfinedRoot::OpenFolder(const std::string& path) const {
  open_how how = {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  const std::string relative = path.empty() ? "." : path;
  for (int tries = 0;; ++tries) {
    UniqueFd fd(
        static_cast<int>(::syscall(SYS_openat2, root_fd_, relative.c_str(), &how, sizeof(how))));
    if (fd) return fd;
    // openat2(2): EAGAIN when a rename elsewhere made the walk unsure; trying again is the answer.
    if (errno == EAGAIN && tries < kTries) continue;
    if (errno == EXDEV) return OnMount(path);
    if (errno == ELOOP || errno == ENOTDIR) {
      return InvalidArgument("/" + Printable(path) + " leads through something that is no folder");
    }
    return SyscallError(errno, "open /" + Printable(path));
  }
}

Result<UniqueFd> ConfinedRoot::MakeFolder(const std::string& path) {
  Result<UniqueFd> there = OpenFolder(path);
  if (ErrnoOf(there.status()) != ENOENT || path.empty()) return there;
  const auto [parent_path, name] = Split(path);
  ASSIGN_OR_RETURN(const UniqueFd parent, MakeFolder(parent_path));
  // EEXIST: a link that leads nowhere. It stays, and the folder behind it is missing below.
  if (::mkdirat(parent.get(), name.c_str(), 0755) != 0 && errno != EEXIST) {
    return SyscallError(errno, "mkdir /" + Printable(path));
  }
  return OpenFolder(path);
}

/// The kernel's own answer: links on the way there are resolved (proc_pid_fd(5)).
Result<std::string> ConfinedRoot::PathOf(int folder) const {
  ASSIGN_OR_RETURN(const std::string root,
                   ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(root_fd_)));
  ASSIGN_OR_RETURN(const std::string path,
                   ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(folder)));
  if (path == root) return "";
  const std::string below = root.ends_with('/') ? root : root + "/";
  if (!path.starts_with(below)) return Aborted("the container's root moved while it was changed");
  return path.substr(below.size());
}

Status ConfinedRoot::Remove(const Place& place) {
  if (left_out_.HasBelow(place.path) &&
      ::faccessat(place.folder, place.name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
    return OnMount(place.path);
  }
  return RemoveTree(place.folder, place.name, place.path, 0);
}

Status ConfinedRoot::RemoveContent(const Place& place) {
  ASSIGN_OR_RETURN(const UniqueFd folder,
                   OpenAt(place.folder, place.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  return RemoveChildren(folder.get(), place.path, 0);
}

Status ConfinedRoot::RemoveTree(int folder, const std::string& name, const std::string& path,
                                int depth) {
  const Result<struct statx> st = Stat(folder, name, path);
  if (ErrnoOf(st.status()) == ENOENT) return OkStatus();
  RETURN_IF_ERROR(st.status());
  if (IsMountRoot(*st) || left_out_.Covers(path) || placed_.contains(Identity(*st))) {
    return OkStatus();
  }
  int flags = 0;
  if (S_ISDIR(st->stx_mode)) {
    if (depth > kMaxDepth) return ResourceExhausted("/" + Printable(path) + ": nested too deep");
    ASSIGN_OR_RETURN(const UniqueFd own, OpenAt(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    RETURN_IF_ERROR(RemoveChildren(own.get(), path, depth + 1));
    flags = AT_REMOVEDIR;
  }
  // ENOTEMPTY: something below is to stay.
  if (::unlinkat(folder, name.c_str(), flags) != 0 && errno != ENOENT && errno != ENOTEMPTY) {
    return SyscallError(errno, "remove /" + Printable(path));
  }
  if (flags != 0) folder_is_stale_ = true;  // the next place may be in this folder, made anew
  return OkStatus();
}

Status ConfinedRoot::RemoveChildren(int folder, const std::string& path, int depth) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, FolderNames(folder));
  for (const std::string& name : names) {
    RETURN_IF_ERROR(RemoveTree(folder, name, path + "/" + name, depth));
  }
  return OkStatus();
}

Status ConfinedRoot::NotePlaced(const Place& place) {
  ASSIGN_OR_RETURN(const struct statx st, Stat(place.folder, place.name, place.path));
  placed_.insert(Identity(st));
  return OkStatus();
}

}  // namespace stasis::archive
