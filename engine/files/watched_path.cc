// Source  open_by_handle_at(2), openat2(2), inotify(7); tested on 6.18
// Rule    What a file system calls an inode's device in stat(2) may be another than the one that watches show
//         (overlayfs, btrfs): so a path is right when a watch of our own on it shows the same.
#include "engine/files/watched_path.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include "engine/base/io.h"
#include "engine/files/path.h"
#include "engine/proc/mountinfo.h"

namespace stasis::engine {
namespace {

// The most folder entries that are looked at for one watch. The tree stands still for it: half a second.
constexpr std::size_t kSearchLimit = 300'000;

const std::string kProc = "/proc/";

bool IsOn(const Mount& mount, const WatchedInode& watch) {
  return (mount.dev_major << 20 | mount.dev_minor) == watch.device;
}

// Looks for the path of what `watch` watches, in the root of the holder of `file`.
class Search {
 public:
  Search(const OpenFile& file, const WatchedInode& watch, const FileDumpContext& context)
      : file_(file), watch_(watch), context_(context), root_(context.RootOf(file)) {}

  /// A path that leads to it, if possible one that does in another pod, too.
  Result<std::optional<std::string>> Run() {
    ASSIGN_OR_RETURN(std::optional<std::string> path, AnyPath());
    if (path) {
      std::string lasting = ThroughDataLink(*path);
      if (!lasting.empty() && IsIt(lasting)) return lasting;
    }
    return path;
  }

 private:
  Result<std::optional<std::string>> AnyPath() {
    for (const std::string& path : Likely()) {
      if (IsIt(path)) return path;
    }
    if (auto link = Held()) return link;
    ASSIGN_OR_RETURN(const std::string text,
                     ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(file_.pid) + "/mountinfo"));
    ASSIGN_OR_RETURN(const std::vector<Mount> mounts, ParseMountinfo(text));
    for (const Mount& mount : mounts) {
      if (!IsOn(mount, watch_)) continue;
      if (auto path = ByHandle(mount.mountpoint)) return path;
    }
    for (const Mount& mount : mounts) {
      if (!IsOn(mount, watch_)) continue;
      if (auto path = Below(mount.mountpoint)) return path;
    }
    return std::nullopt;
  }

  // Open files of the tree with that inode, and all folders above open files.
  std::vector<std::string> Likely() const {
    std::set<std::string> folders;
    std::vector<std::string> paths;
    for (const OpenFile& other : context_.files()) {
      if (!other.link.starts_with('/')) continue;
      if (other.st.st_ino == watch_.inode) paths.push_back(other.link);
      for (std::size_t end = other.link.rfind('/'); end != std::string::npos && end > 0;
           end = other.link.rfind('/', end - 1)) {
        folders.insert(other.link.substr(0, end));
      }
    }
    paths.insert(paths.end(), folders.begin(), folders.end());
    return paths;
  }

  // What is deleted, and open somewhere in the tree.
  std::optional<std::string> Held() const {
    for (const OpenFile& other : context_.files()) {
      if (other.st.st_ino != watch_.inode || !IsIt(other.borrowed.get())) continue;
      return kProc + std::to_string(other.ns_pid) + "/fd/" + std::to_string(other.fd);
    }
    return std::nullopt;
  }

  UniqueFd Open(const std::string& path, std::uint64_t flags) const {
    Result<UniqueFd> found = OpenInRoot(root_, path, flags | O_NOFOLLOW);
    return found.ok() ? *std::move(found) : UniqueFd();
  }

  bool IsIt(const std::string& path) const {
    const UniqueFd found = Open(path, O_PATH);
    return found && IsIt(found.get());
  }

  bool IsIt(int fd) const {
    const UniqueFd ours(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!ours) return false;
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (::inotify_add_watch(ours.get(), link.c_str(), IN_DELETE_SELF) < 0) return false;
    const auto text =
        ReadFileAt(AT_FDCWD, "/proc/thread-self/fdinfo/" + std::to_string(ours.get()));
    if (!text.ok()) return false;
    const auto watches = ParseInotify(*text);
    return watches.ok() && watches->size() == 1 && watches->front().inode == watch_.inode &&
           watches->front().device == watch_.device;
  }

  // By the handle, as far as the file system can: overlayfs cannot without nfs_export=on.
  std::optional<std::string> ByHandle(const std::string& mountpoint) const {
    struct {
      struct file_handle head;
      std::array<char, MAX_HANDLE_SZ> room;
    } handle = {};
    if (watch_.handle.empty() || watch_.handle.size() > handle.room.size()) return std::nullopt;
    handle.head.handle_bytes = static_cast<unsigned>(watch_.handle.size());
    handle.head.handle_type = watch_.handle_type;
    std::memcpy(handle.head.f_handle, watch_.handle.data(), watch_.handle.size());
    const UniqueFd mount = Open(mountpoint, O_RDONLY | O_NONBLOCK);
    if (!mount) return std::nullopt;
    const UniqueFd found(::open_by_handle_at(mount.get(), &handle.head, O_PATH | O_CLOEXEC));
    if (!found) return std::nullopt;
    Result<std::string> path = ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(found.get()));
    if (path.ok() && IsIt(*path)) return *std::move(path);
    return std::nullopt;
  }

  // Folder by folder below `top`, the nearest first, without leaving its file system.
  std::optional<std::string> Below(const std::string& top) {
    std::vector<std::string> level = {top};
    while (!level.empty()) {
      std::vector<std::string> next;
      for (const std::string& folder : level) {
        if (const auto path = In(folder, next)) return path;
        if (looked_at_ > kSearchLimit) return std::nullopt;
      }
      level = std::move(next);
    }
    return std::nullopt;
  }

  std::optional<std::string> In(const std::string& folder, std::vector<std::string>& folders) {
    UniqueFd fd = Open(folder, O_RDONLY | O_DIRECTORY | O_NONBLOCK);
    if (!fd) return std::nullopt;
    const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(fd.get()), ::closedir);
    if (!entries) return std::nullopt;
    (void)fd.Release();  // closedir(3) closes it
    struct stat st = {};
    const int opened = ::dirfd(entries.get());
    if (opened < 0 || ::fstat(opened, &st) != 0) return std::nullopt;
    if (folder == "/" && st.st_ino == watch_.inode && IsIt(folder)) return folder;
    while (const dirent* const entry = ::readdir(entries.get())) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      ++looked_at_;
      std::string path = (folder == "/" ? "" : folder) + "/" + name;
      if (entry->d_ino == watch_.inode && IsIt(path)) return path;
      if (entry->d_type == DT_DIR) folders.push_back(std::move(path));
    }
    return std::nullopt;
  }

  const OpenFile& file_;
  const WatchedInode& watch_;
  const FileDumpContext& context_;
  int root_;
  std::size_t looked_at_ = 0;
};

}  // namespace

Result<std::string> PathOfWatched(const OpenFile& file, const WatchedInode& watch,
                                  const FileDumpContext& context) {
  ASSIGN_OR_RETURN(std::optional<std::string> path, Search(file, watch, context).Run());
  if (path) return *std::move(path);
  return Unimplemented(NameOf(file) + ": no path leads to inode " + std::to_string(watch.inode) +
                       " of device " + std::to_string(watch.device >> 20) + ":" +
                       std::to_string(watch.device & 0xfffff) + ", which it watches");
}

image::FhEntry HandleEntry(const WatchedInode& watch, std::string path) {
  image::FhEntry handle;
  handle.set_bytes(static_cast<std::uint32_t>(watch.handle.size()));
  handle.set_type(static_cast<std::uint32_t>(watch.handle_type));
  std::array<std::uint64_t, 16> words = {};  // as CRIU: always 128 bytes
  std::memcpy(words.data(), watch.handle.data(), std::min(watch.handle.size(), sizeof(words)));
  handle.mutable_handle()->Add(words.begin(), words.end());
  handle.set_path(std::move(path));
  return handle;
}

bool IsPathOfHeld(const std::string& path) { return path.starts_with(kProc); }

}  // namespace stasis::engine
