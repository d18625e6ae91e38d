#include "engine/files/path.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"

namespace stasis::engine {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

// The offset of a file that is not to be moved, as CRIU writes it.
constexpr std::uint64_t kNoOffset = ~std::uint64_t{0};

// Does `path` in the directory tree of `root_fd` lead to `file`? The text comes from d_path, so no
// part of it is a symbolic link unless somebody put one there since.
Result<bool> Reaches(int root_fd, const std::string& path, const OpenFile& file) {
  const Result<UniqueFd> found = OpenInRoot(root_fd, path, O_PATH | O_NOFOLLOW);
  const int error = ErrnoOf(found.status());
  if (error == ENOENT || error == ENOTDIR || error == ELOOP) return false;
  RETURN_IF_ERROR(found.status());
  // stat against stat, in one view: on overlayfs and btrfs no other device number agrees.
  struct stat st = {};
  if (::fstat(found->get(), &st) != 0) {
    return SyscallError(errno, "stat " + path);
  }
  if ((st.st_mode & S_IFMT) != (file.st.st_mode & S_IFMT)) return false;
  // A device is what its number says, whichever node leads to it: a runtime may have opened the host's
  // /dev/null for the container.
  if (S_ISCHR(st.st_mode)) return st.st_rdev == file.st.st_rdev;
  return st.st_dev == file.st.st_dev && st.st_ino == file.st.st_ino;
}

const char* TypeName(std::uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFREG:
      return "a regular file";
    case S_IFDIR:
      return "a directory";
    case S_IFLNK:
      return "a symbolic link";
    case S_IFIFO:
      return "a FIFO";
    case S_IFSOCK:
      return "a socket";
    default:
      return "a device";
  }
}

}  // namespace

std::string ThroughDataLink(const std::string& path) {
  constexpr std::string_view kLink = "/..data";
  std::size_t begin = path.find("/..");
  while (begin != std::string::npos) {
    const std::size_t end = path.find('/', begin + 1);
    if (end == std::string::npos) return {};
    // "..2026_11_28_11_02_33.557977018"
    const bool digit = path[begin + 3] >= '0' && path[begin + 3] <= '9';
    if (digit && path.find('_', begin) < end) {
      return path.substr(0, begin) + std::string(kLink) + path.substr(end);
    }
    begin = path.find("/..", end);
  }
  return {};
}

Result<PathState> LookUp(const OpenFile& file, const FileDumpContext& context) {
  if (!file.link.starts_with('/')) {
    return Unimplemented(NameOf(file) + ": its path cannot be reached from its holder's root");
  }
  const int root = context.RootOf(file);
  PathState state{.path = file.link};
  // " (deleted)" may be part of a name: only what the path leads to decides.
  if (std::string lasting = ThroughDataLink(state.path); !lasting.empty()) {
    ASSIGN_OR_RETURN(state.reaches, Reaches(root, lasting, file));
    if (state.reaches) return PathState{.path = std::move(lasting), .reaches = true};
  }
  ASSIGN_OR_RETURN(state.reaches, Reaches(root, state.path, file));
  // Rule: a setting of a namespace is another file for whoever looks from another one (proc_sys_compare() in
  // fs/proc/proc_sysctl.c). The path is the same for those who are in it.
  if (file.fs_magic == PROC_SUPER_MAGIC && state.path.starts_with("/proc/sys/") &&
      !state.path.ends_with(kDeleted)) {
    state.reaches = true;
  }
  if (state.reaches || !state.path.ends_with(kDeleted)) return state;
  state.path.resize(state.path.size() - kDeleted.size());
  ASSIGN_OR_RETURN(state.reaches, Reaches(root, state.path, file));
  return state;
}

Result<image::RegFileEntry> DumpRegEntry(const OpenFile& file, std::uint32_t id,
                                         const std::string& path, FileDumpContext& context) {
  image::RegFileEntry reg;
  RETURN_IF_ERROR(DumpCommon(file, context, reg));
  reg.set_id(id);
  reg.set_pos((file.flags & O_PATH) != 0 ? 0 : file.pos);
  reg.set_name(path);
  reg.set_mode(file.st.st_mode);
  if (const int mount = context.OtherMountOf(file); mount >= 0) reg.set_mnt_id(mount);
  // As CRIU: what only appends may find the file grown. What the kernel makes up (/proc) has no
  // size.
  const bool writes_only = (file.flags & O_ACCMODE) == O_WRONLY || (file.flags & O_APPEND) != 0;
  if (S_ISREG(file.st.st_mode) && file.st.st_size > 0 && !writes_only) {
    reg.set_size(static_cast<std::uint64_t>(file.st.st_size));
  }
  return reg;
}

Result<UniqueFd> OpenRegEntry(const image::RegFileEntry& reg, FileRestoreContext& context) {
  if (!reg.name().starts_with('/')) {
    return InvalidArgument("the path \"" + reg.name() + "\" is not absolute");
  }
  // O_NONBLOCK: a FIFO that took its place must not hold us. Not O_NOFOLLOW, which would stay in the flags
  // for the program to see; what a link leads to is checked as well.
  const int flags = OpenFlags(reg.flags()) | O_NOCTTY | O_NONBLOCK;
  Result<UniqueFd> fd = context.actor().Open(reg.name(), flags, 0);
  if (!fd.ok()) return Annotate(fd.status(), "open " + reg.name());
  RETURN_IF_ERROR(CheckRegEntry(fd->get(), reg));
  RETURN_IF_ERROR(SetRegState(fd->get(), reg));
  return fd;
}

Status CheckRegEntry(int fd, const image::RegFileEntry& reg) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) {
    return SyscallError(errno, "stat " + reg.name());
  }
  // Permissions do not matter to what is open already.
  if (reg.has_mode() && (reg.mode() & S_IFMT) != (st.st_mode & S_IFMT)) {
    return FailedPrecondition(reg.name() + " was " + TypeName(reg.mode()) +
                              " at the checkpoint and is " + TypeName(st.st_mode) + " here");
  }
  const auto size = static_cast<std::uint64_t>(st.st_size);
  if (reg.has_size() && S_ISREG(st.st_mode) && size < reg.size()) {
    return FailedPrecondition(reg.name() + " had " + std::to_string(reg.size()) +
                              " bytes at the checkpoint and has " + std::to_string(size) +
                              " here: bring back the file as it was");
  }
  return OkStatus();
}

bool IsMadeUp(int fd) {
  struct statfs fs = {};
  return ::fstatfs(fd, &fs) != 0 || fs.f_type == PROC_SUPER_MAGIC;
}

Status SetMadeUpState(int fd, const image::RegFileEntry& reg, ProcessActor& process, int number) {
  if ((reg.flags() & O_PATH) != 0 || reg.pos() == 0 || reg.pos() == kNoOffset || !IsMadeUp(fd)) {
    return OkStatus();
  }
  return process.Seek(number, reg.pos());
}

Status SetRegState(int fd, const image::RegFileEntry& reg) {
  if ((reg.flags() & O_PATH) != 0) return OkStatus();  // has neither
  RETURN_IF_ERROR(SetStatusFlags(fd, reg.flags()));
  if (reg.pos() == 0 || reg.pos() == kNoOffset || IsMadeUp(fd)) return OkStatus();
  if (::lseek(fd, static_cast<off_t>(reg.pos()), SEEK_SET) < 0) {
    return SyscallError(errno, "lseek " + reg.name() + " to " + std::to_string(reg.pos()));
  }
  return OkStatus();
}

}  // namespace stasis::engine
