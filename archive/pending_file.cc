#include "archive/pending_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr unsigned kMode = 0600;  // memory of a process: for root's eyes

Status Taken(const std::string& path) {
  return AlreadyExists(path +
                       " exists and is not overwritten; choose another name (names with a time in "
                       "whole seconds meet when two checkpoints fall into one second)");
}

/// `what`, with what the user can do about it.
Status Unusable(int error, const std::string& what) {
  switch (error) {
    case ENOENT:
      return SyscallError(error, what + " (make it first, or choose another location)");
    case ENOSPC:
    case EDQUOT:
      return SyscallError(error, what + " (free space, or choose another location)");
    default:
      return SyscallError(error, what + " (choose another location)");
  }
}

}  // namespace

Result<PendingFile> PendingFile::Create(const std::string& path) {
  Result<PendingFile> unnamed = Create(path, Kind::kUnnamed);
  switch (ErrnoOf(unnamed.status())) {
    case EOPNOTSUPP:  // the file system has no O_TMPFILE: NFS, FUSE, overlayfs before Linux 6.3
    case EISDIR:      // open(2), BUGS: what such a file system says through an older kernel
      return Create(path, Kind::kDotNamed);
    default:
      return unnamed;
  }
}

Result<PendingFile> PendingFile::Create(const std::string& path, Kind kind) {
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") {
    return InvalidArgument("\"" + path + "\" names no file");
  }
  Result<UniqueFd> directory = OpenAt(AT_FDCWD, folder, O_RDONLY | O_DIRECTORY);
  if (!directory.ok()) return Unusable(ErrnoOf(directory.status()), "the folder of " + path);
  PendingFile file(path, std::move(*directory), name);
  struct stat st = {};
  if (::fstatat(file.directory_.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0) {
    return Taken(path);
  }
  RETURN_IF_ERROR(kind == Kind::kUnnamed ? file.OpenUnnamed() : file.OpenDotNamed());
  return file;
}

PendingFile::~PendingFile() { Discard(); }

Status PendingFile::OpenUnnamed() {
  fd_.Reset(::openat(directory_.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, kMode));
  if (!fd_) {
    return Unusable(errno, "create a file in the folder of " + path_);
  }
  return OkStatus();
}

Status PendingFile::OpenDotNamed() {
  // Ours alone by pid and count; O_EXCL makes sure. Tools list "checkpoint-*", not this.
  static std::atomic<unsigned> count = 0;
  std::string temporary =
      ".stasis-" + std::to_string(::getpid()) + "-" + std::to_string(++count) + ".partial";
  fd_.Reset(::openat(directory_.get(), temporary.c_str(),
                     O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, kMode));
  if (!fd_) {
    return Unusable(errno, "create " + temporary + " in the folder of " + path_);
  }
  temporary_ = std::move(temporary);
  return OkStatus();
}

Status PendingFile::Publish(const std::function<Status()>& wanted) {
  if (::fsync(fd_.get()) != 0) {
    return SyscallError(errno, "fsync " + path_);
  }
  if (wanted) RETURN_IF_ERROR(wanted());
  const Status named = GiveName();
  if (ErrnoOf(named) == EEXIST) return Taken(path_);
  RETURN_IF_ERROR(named);
  if (::fsync(directory_.get()) != 0) {
    return SyscallError(errno, "fsync the folder of " + path_);
  }
  return OkStatus();
}

Status PendingFile::GiveName() {
  if (temporary_.empty()) {
    // open(2), O_TMPFILE: the way in that needs no CAP_DAC_READ_SEARCH. linkat(2) never replaces.
    const std::string link = "/proc/self/fd/" + std::to_string(fd_.get());
    if (::linkat(AT_FDCWD, link.c_str(), directory_.get(), name_.c_str(), AT_SYMLINK_FOLLOW) != 0) {
      return SyscallError(errno, "link " + path_);
    }
    return OkStatus();
  }
  if (::renameat2(directory_.get(), temporary_.c_str(), directory_.get(), name_.c_str(),
                  RENAME_NOREPLACE) == 0) {
    temporary_.clear();
    return OkStatus();
  }
  if (errno != EINVAL) {
    return SyscallError(errno, "rename to " + path_);
  }
  // rename(2): EINVAL where the file system has no RENAME_NOREPLACE (NFS). A link does not replace
  // either; the hidden name goes with Discard().
  if (::linkat(directory_.get(), temporary_.c_str(), directory_.get(), name_.c_str(), 0) != 0) {
    return SyscallError(errno, "link " + path_);
  }
  Discard();
  return OkStatus();
}

void PendingFile::Discard() {
  if (!temporary_.empty()) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
  temporary_.clear();
}

}  // namespace stasis::archive
