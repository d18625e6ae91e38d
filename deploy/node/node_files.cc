#include "deploy/node/node_files.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "engine/base/io.h"

namespace stasis::node {
namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 20;
constexpr const char* kLabel = "security.selinux";
// What a killed run left under this name is replaced by the next one. Neither systemd nor k3s reads it:
// the one wants .conf, .service and so on, the other .yaml.
constexpr const char* kUnfinished = ".stasis-new";

std::string ParentOf(const std::string& path) {
  return std::filesystem::path(path).parent_path().string();
}

std::string NameOf(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

Status SyncFolder(const std::string& path) {
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenAt(AT_FDCWD, path, O_RDONLY | O_DIRECTORY));
  if (::fsync(folder.get()) != 0) {
    const int error = errno;
    return SyscallError(error, "fsync " + path);
  }
  return OkStatus();
}

// A label says who may read the file under SELinux; the file that takes its place needs the same.
void CopyLabel(const std::string& from, int to) {
  char label[256];
  const ssize_t size = ::lgetxattr(from.c_str(), kLabel, label, sizeof(label));
  if (size > 0) (void)::fsetxattr(to, kLabel, label, static_cast<std::size_t>(size), 0);
}

Status WriteFile(const std::string& path, const Content& content, const std::string& label_of) {
  ASSIGN_OR_RETURN(const UniqueFd file,
                   OpenAt(AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
  RETURN_IF_ERROR(WriteAll(file.get(), content.bytes));
  CopyLabel(label_of, file.get());
  // chown(2) clears set-id bits, so the mode comes after it.
  if (::fchown(file.get(), content.uid, content.gid) != 0 ||
      ::fchmod(file.get(), content.mode) != 0) {
    const int error = errno;
    return SyscallError(error, "set the owner and mode of " + path);
  }
  if (content.modified.tv_sec != 0) {
    const timespec times[2] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT}, content.modified};
    if (::futimens(file.get(), times) != 0) {
      const int error = errno;
      return SyscallError(error, "set the time of " + path);
    }
  }
  if (::fsync(file.get()) != 0) {
    const int error = errno;
    return SyscallError(error, "fsync " + path);
  }
  return OkStatus();
}

Status Remove(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT && errno != ENOTDIR) {
    const int error = errno;
    return SyscallError(error, "unlink " + path);
  }
  return OkStatus();
}

}  // namespace

bool Same(const MaybeContent& a, const MaybeContent& b) {
  return a && b ? a->SameAs(*b) : a.has_value() == b.has_value();
}

Result<NodeFiles> NodeFiles::Open(const std::string& root) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(AT_FDCWD, root, O_PATH | O_DIRECTORY));
  std::error_code error;
  std::string absolute = std::filesystem::canonical(root, error).string();
  if (error) return SyscallError(error.value(), root);
  // Where files lie is asked there; without it every one of them would seem to be missing.
  const auto place = ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(fd.get()));
  if (!place.ok()) return FailedPrecondition("there is no /proc here; mount -t proc proc /proc");
  return NodeFiles(absolute == "/" ? "" : absolute, std::move(fd));
}

std::string NodeFiles::Here(const std::string& path) const { return root_ + path; }

Result<UniqueFd> NodeFiles::OpenInside(const std::string& path, unsigned long flags) const {
  // The node's own absolute links, as of /var/run, lead out of the mounted root for anybody else:
  // openat2(2), RESOLVE_IN_ROOT, Linux 5.6.
  open_how how{};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  const long fd = ::syscall(SYS_openat2, fd_.get(), path.c_str(), &how, sizeof(how));
  if (fd < 0) {
    const int error = errno;
    return SyscallError(error, "open " + path + " of the node");
  }
  return UniqueFd(static_cast<int>(fd));
}

Result<std::string> NodeFiles::Place(const std::string& path, bool follow) const {
  if (follow) {
    const auto file = OpenInside(path, O_PATH);
    if (file.ok()) return ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(file->get()));
    if (ErrnoOf(file.status()) != ENOENT) return file.status();
  }
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenInside(ParentOf(path), O_PATH | O_DIRECTORY));
  ASSIGN_OR_RETURN(const std::string real,
                   ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(folder.get())));
  return (real == "/" ? "" : real) + "/" + NameOf(path);
}

bool NodeFiles::Exists(const std::string& path) const { return OpenInside(path, O_PATH).ok(); }

Result<MaybeContent> NodeFiles::Read(const std::string& path, bool follow) const {
  const auto place = Place(path, follow);
  if (!place.ok()) {
    const int error = ErrnoOf(place.status());
    if (error == ENOENT || error == ENOTDIR) return MaybeContent();
    return place.status();
  }
  struct stat status{};
  if (::lstat(place->c_str(), &status) != 0) {
    const int error = errno;
    if (error == ENOENT) return MaybeContent();
    return SyscallError(error, "lstat " + *place);
  }
  Content content{.mode = status.st_mode & 07777,
                  .uid = status.st_uid,
                  .gid = status.st_gid,
                  .modified = status.st_mtim};
  if (S_ISLNK(status.st_mode)) {
    content.is_link = true;
    ASSIGN_OR_RETURN(content.bytes, ReadLinkAt(AT_FDCWD, *place));
  } else if (S_ISREG(status.st_mode)) {
    ASSIGN_OR_RETURN(content.bytes, ReadFileAt(AT_FDCWD, *place, kMaxFileBytes));
  } else {
    return FailedPrecondition(path + " is neither a file nor a link");
  }
  return MaybeContent(std::move(content));
}

Status NodeFiles::Put(const std::string& path, const MaybeContent& content) const {
  const auto place = Place(path, content && !content->is_link);
  if (!place.ok()) {
    // Nothing to be removed from a folder that is gone.
    if (!content && ErrnoOf(place.status()) == ENOENT) return OkStatus();
    return place.status();
  }
  const std::string unfinished = *place + kUnfinished;
  RETURN_IF_ERROR(Remove(unfinished));
  if (!content) {
    RETURN_IF_ERROR(Remove(*place));
    return SyncFolder(ParentOf(*place));
  }
  if (!content->is_link) {
    RETURN_IF_ERROR(WriteFile(unfinished, *content, *place));
  } else if (::symlink(content->bytes.c_str(), unfinished.c_str()) != 0) {
    const int error = errno;
    return SyscallError(error, "symlink " + unfinished);
  }
  if (::rename(unfinished.c_str(), place->c_str()) != 0) {
    const int error = errno;
    return SyscallError(error, "rename " + unfinished);
  }
  return SyncFolder(ParentOf(*place));
}

std::vector<std::string> NodeFiles::Names(const std::string& path) const {
  std::vector<std::string> names;
  const auto place = Place(path, true);
  std::error_code error;
  if (!place.ok()) return names;
  for (const auto& entry : std::filesystem::directory_iterator(*place, error)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> NodeFiles::MissingFolders(const std::string& path) const {
  std::vector<std::string> missing;
  for (std::string folder = ParentOf(path); folder != "/" && !folder.empty() && !Exists(folder);
       folder = ParentOf(folder)) {
    missing.insert(missing.begin(), folder);
  }
  return missing;
}

Status NodeFiles::MakeFolders(const std::string& path) const {
  for (const std::string& folder : MissingFolders(path)) {
    ASSIGN_OR_RETURN(const std::string place, Place(folder, false));
    if (::mkdir(place.c_str(), 0755) != 0 && errno != EEXIST) {
      const int error = errno;
      return SyscallError(error, "mkdir " + folder);
    }
    RETURN_IF_ERROR(SyncFolder(ParentOf(place)));
  }
  return OkStatus();
}

void NodeFiles::RemoveEmptyFolder(const std::string& path) const {
  const auto place = Place(path, false);
  if (place.ok()) (void)::rmdir(place->c_str());  // has content of others: it stays
}

}  // namespace stasis::node
