// Order    a file's owner before its mode (chown(2) clears set-user-ID bits) and before its capability (which it
//          drops); times of folders last, because what is put into them changes them
// Source  criu.org "Tmpfs", the images of CRIU 4.2; tar(5), chown(2), xattr(7)
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "archive/libarchive.h"
#include "archive/member_name.h"
#include "archive/tmpfs_content.h"
#include "archive/utf8_locale.h"
#include "archive/xattrs.h"
#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {
namespace {

constexpr std::size_t kMaxEntries = 1'000'000;
constexpr std::size_t kMaxNotes = 100;

std::string ProcPath(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

// A name in a folder of the file system.
struct Place {
  UniqueFd folder;
  std::string name;
};

class ContentReader {
 public:
  /// `rights`: of a file system that is new.
  ContentReader(int fd, std::uint64_t max_bytes, const std::optional<TmpfsRights>& rights,
                const UserIds& ids)
      : folder_(fd), left_bytes_(max_bytes), rights_(rights), ids_(ids) {}

  Result<TmpfsRestoreReport> Run(std::string_view tar) {
    const Utf8Locale locale;  // libarchive turns the names of pax headers into the locale's
    tar_.reset(archive_read_new());
    RETURN_IF_ERROR(SupportFilters(tar_.get()));
    archive_read_support_format_tar(tar_.get());
    if (archive_read_open_memory(tar_.get(), tar.data(), tar.size()) != ARCHIVE_OK) {
      return Failed("begin");
    }
    for (std::size_t entries = 0;; ++entries) {
      if (entries > kMaxEntries) return ResourceExhausted("too many files");
      struct archive_entry* entry = nullptr;
      const int got = archive_read_next_header(tar_.get(), &entry);
      if (got == ARCHIVE_EOF) break;
      if (got != ARCHIVE_OK) return Failed("header");
      const char* const name = archive_entry_pathname(entry);
      RETURN_IF_ERROR(Annotate(Put(name == nullptr ? "" : name, entry),
                               Printable(name == nullptr ? "" : name)));
    }
    RETURN_IF_ERROR(SetFolderTimes());
    return std::move(report_);
  }

 private:
  using Times = std::array<timespec, 2>;

  Status Failed(std::string_view what) {
    return LibarchiveError(tar_.get(), StatusCode::kDataLoss,
                           "content of a tmpfs: " + std::string(what));
  }

  static std::string Plain(std::string path) {
    while (path.starts_with("./")) path.erase(0, 2);
    while (path.ends_with('/')) path.pop_back();
    return path.empty() ? "." : path;
  }

  Result<Place> Find(const std::string& path) const {
    RETURN_IF_ERROR(CheckRelativePath(path));
    const std::size_t slash = path.rfind('/');
    Place place;
    place.name = path.substr(slash == std::string::npos ? 0 : slash + 1);
    ASSIGN_OR_RETURN(place.folder,
                     OpenBeneath(slash == std::string::npos ? "." : path.substr(0, slash)));
    return place;
  }

  Status Put(const std::string& name, struct archive_entry* entry) {
    const std::string path = Plain(name);
    if (path == ".") return rights_ ? PutRoot(entry) : OkStatus();
    ASSIGN_OR_RETURN(const Place place, Find(path));
    if (const char* const target = archive_entry_hardlink(entry)) {
      return Made(Link(place, Plain(target)), path);
    }
    const mode_t mode = archive_entry_mode(entry);
    if ((S_ISCHR(mode) || S_ISBLK(mode)) && rights_ && !rights_->devices) {
      Note(path + " is a device and is left out");
      return OkStatus();
    }
    Result<UniqueFd> made = Make(place, entry);
    if (ErrnoOf(made.status()) == EEXIST)
      return S_ISDIR(mode) ? OkStatus() : Made(made.status(), path);
    RETURN_IF_ERROR(made.status());
    if (S_ISREG(mode)) RETURN_IF_ERROR(Fill(made->get(), entry));
    made->Reset();  // whoever has it open for writing could not be given a capability
    if (S_ISDIR(mode)) folder_times_.emplace_back(path, TimesOf(entry));
    return SetAttributes(place, path, entry);
  }

  Status Made(const Status& status, const std::string& path) {
    if (ErrnoOf(status) != EEXIST) return status;
    report_.kept.push_back(path);
    return OkStatus();
  }

  Status PutRoot(struct archive_entry* entry) {
    Place place;
    ASSIGN_OR_RETURN(place.folder, OpenBeneath("."));
    place.name = ".";
    folder_times_.emplace_back(".", TimesOf(entry));
    return SetAttributes(place, ".", entry);
  }

  Result<UniqueFd> OpenBeneath(const std::string& path) const {
    open_how how = {};
    how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
    UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, folder_, path.c_str(), &how, sizeof(how))));
    if (!fd) return SyscallError(errno, "open its folder");
    return fd;
  }

  // Both ends are below the folder. linkat(2) follows no link here.
  Status Link(const Place& place, const std::string& target) const {
    ASSIGN_OR_RETURN(const Place source, Find(target));
    if (::linkat(source.folder.get(), source.name.c_str(), place.folder.get(), place.name.c_str(),
                 0) != 0) {
      return SyscallError(errno, "link to " + Printable(target));
    }
    return OkStatus();
  }

  // A file of that type with that name, which must be free; a descriptor of a regular one.
  Result<UniqueFd> Make(const Place& place, struct archive_entry* entry) const {
    const mode_t mode = archive_entry_mode(entry);
    const int folder = place.folder.get();
    const char* const name = place.name.c_str();
    if (S_ISREG(mode)) {
      return OpenAt(folder, place.name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0600);
    }
    int result = 0;
    if (S_ISDIR(mode)) {
      result = ::mkdirat(folder, name, 0700);
    } else if (S_ISFIFO(mode)) {
      result = ::mkfifoat(folder, name, 0600);
    } else if (S_ISLNK(mode) && rights_ && archive_entry_symlink(entry) != nullptr) {
      result = ::symlinkat(archive_entry_symlink(entry), folder, name);
    } else if ((S_ISCHR(mode) || S_ISBLK(mode)) && rights_) {
      result = ::mknodat(folder, name, (mode & S_IFMT) | 0600, archive_entry_rdev(entry));
    } else {
      return InvalidArgument("of another type than a file, a folder or a FIFO");
    }
    if (result != 0) return SyscallError(errno, "make it");
    return UniqueFd();
  }

  Status Fill(int file, struct archive_entry* entry) {
    while (true) {
      const void* bytes = nullptr;
      std::size_t size = 0;
      la_int64_t offset = 0;
      const int got = archive_read_data_block(tar_.get(), &bytes, &size, &offset);
      if (got == ARCHIVE_EOF) break;
      if (got != ARCHIVE_OK) return Failed("file");
      if (size > left_bytes_) return ResourceExhausted("too large");
      left_bytes_ -= size;
      if (::lseek(file, offset, SEEK_SET) < 0) return SyscallError(errno, "seek");
      RETURN_IF_ERROR(WriteAll(file, std::span(static_cast<const std::byte*>(bytes), size)));
    }
    // Its end may be a hole. The size is a stranger's number until now.
    if (::ftruncate(file, archive_entry_size(entry)) != 0) return SyscallError(errno, "truncate");
    return OkStatus();
  }

  static Times TimesOf(struct archive_entry* entry) {
    const timespec time = {.tv_sec = archive_entry_mtime(entry),
                           .tv_nsec = archive_entry_mtime_nsec(entry)};
    return {time, time};
  }

  Status SetAttributes(const Place& place, const std::string& path, struct archive_entry* entry) {
    const int folder = place.folder.get();
    const char* const name = place.name.c_str();
    const mode_t mode = archive_entry_mode(entry);
    ASSIGN_OR_RETURN(const std::uint32_t user,
                     ids_.users.ToOutside(static_cast<uid_t>(archive_entry_uid(entry))));
    ASSIGN_OR_RETURN(const std::uint32_t group,
                     ids_.groups.ToOutside(static_cast<gid_t>(archive_entry_gid(entry))));
    if (::fchownat(folder, name, user, group, AT_SYMLINK_NOFOLLOW) != 0) {
      return SyscallError(errno, "owner");
    }
    if (!S_ISLNK(mode)) {
      ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(folder, place.name, O_PATH | O_NOFOLLOW));
      if (::chmod(ProcPath(fd.get()).c_str(), mode & 07777) != 0) {
        return SyscallError(errno, "mode");
      }
      RETURN_IF_ERROR(SetXattrs(fd.get(), path, entry));
    }
    const Times times = TimesOf(entry);
    if (::utimensat(folder, name, times.data(), AT_SYMLINK_NOFOLLOW) != 0) {
      return SyscallError(errno, "times");
    }
    return OkStatus();
  }

  Status SetXattrs(int fd, const std::string& path, struct archive_entry* entry) {
    archive_entry_xattr_reset(entry);
    const char* name = nullptr;
    const void* value = nullptr;
    std::size_t size = 0;
    while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
      const bool is_allowed = IsAllowed(name);
      ASSIGN_OR_RETURN(
          const std::string set,
          XattrOutside(ids_, name, std::string(static_cast<const char*>(value), size)));
      if (is_allowed && ::setxattr(ProcPath(fd).c_str(), name, set.data(), set.size(), 0) == 0) {
        continue;
      }
      const int error = errno;
      if (is_allowed && error != EOPNOTSUPP) {
        return SyscallError(error, "setxattr " + Printable(name));
      }
      Note(path + ": its attribute " + name + " is left out");
    }
    return OkStatus();
  }

  /// The rest would be a label of the host's policy, or not for who may only write files.
  bool IsAllowed(std::string_view xattr) const {
    if (xattr == "security.capability") return rights_ && rights_->capabilities;
    if (xattr.starts_with("trusted.")) return rights_.has_value() && ids_.are_ours();
    return xattr.starts_with("system.posix_acl_") || xattr.starts_with("user.");
  }

  Status SetFolderTimes() {
    for (const auto& [path, times] : folder_times_) {
      ASSIGN_OR_RETURN(const UniqueFd folder, OpenBeneath(path));
      if (::utimensat(AT_FDCWD, ProcPath(folder.get()).c_str(), times.data(), 0) != 0) {
        return SyscallError(errno, "times of " + Printable(path));
      }
    }
    return OkStatus();
  }

  void Note(const std::string& text) {
    if (report_.notes.size() < kMaxNotes) report_.notes.push_back(Printable(text));
  }

  const int folder_;
  std::uint64_t left_bytes_;
  const std::optional<TmpfsRights> rights_;
  const UserIds& ids_;
  ReadHandle tar_;
  std::vector<std::pair<std::string, Times>> folder_times_;
  TmpfsRestoreReport report_;
};

}  // namespace

Result<TmpfsRestoreReport> RestoreTmpfsContent(int fd, std::string_view tar,
                                               std::uint64_t max_bytes, const UserIds& ids) {
  return ContentReader(fd, max_bytes, std::nullopt, ids).Run(tar);
}

Result<TmpfsRestoreReport> RestoreWholeTmpfs(int fd, std::string_view tar, std::uint64_t max_bytes,
                                             const TmpfsRights& rights, const UserIds& ids) {
  return ContentReader(fd, max_bytes, rights, ids).Run(tar);
}

}  // namespace stasis::archive
