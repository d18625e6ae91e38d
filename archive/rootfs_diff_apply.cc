// From a layer to a container's root.
//
// Order    a file's owner before its mode (chown(2) clears set-user-ID bits) and before its
// capability
//          (which it drops); times of folders last, because what is put into them changes them
// Source   OCI image-spec layer.md, "Representing Changes"; chown(2), capabilities(7), xattr(7)
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <utility>

#include "archive/confined_root.h"
#include "archive/json_fields.h"
#include "archive/libarchive.h"
#include "archive/member_name.h"
#include "archive/rootfs_diff.h"
#include "archive/utf8_locale.h"
#include "archive/xattrs.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;
constexpr std::size_t kMaxNotes = 100;
constexpr std::string_view kWhiteout = ".wh.";
constexpr std::string_view kOpaque = ".wh..wh..opq";

/// What an entry says of its file.
struct Attributes {
  mode_t mode = 0;  ///< With the type.
  uid_t uid = 0;
  gid_t gid = 0;
  std::array<timespec, 2> times = {};
};

Attributes AttributesOf(struct archive_entry* entry) {
  Attributes attributes;
  attributes.mode = archive_entry_mode(entry);
  attributes.uid = static_cast<uid_t>(archive_entry_uid(entry));
  attributes.gid = static_cast<gid_t>(archive_entry_gid(entry));
  const timespec mtime = {.tv_sec = archive_entry_mtime(entry),
                          .tv_nsec = archive_entry_mtime_nsec(entry)};
  attributes.times = {mtime, mtime};
  return attributes;
}

class Applier {
 public:
  Applier(const RootfsApplyRequest& request, const Archive& archive)
      : request_(request), archive_(archive), root_(request.root_fd, request.leave_out) {}

  Result<RootfsDiffReport> Run() {
    if (archive_.Has(kRootfsDiffName)) {
      RETURN_IF_ERROR(Annotate(ApplyLayer(), kRootfsDiffName));
    }
    if (archive_.Has(kDeletedFilesName)) {
      RETURN_IF_ERROR(Annotate(ApplyDeletedFiles(), kDeletedFilesName));
    }
    return std::move(report_);
  }

 private:
  static la_ssize_t GiveBytes(struct archive* handle, void* self, const void** bytes) {
    auto* const applier = static_cast<Applier*>(self);
    const std::size_t size =
        std::min<std::uint64_t>(applier->layer_size_ - applier->layer_position_, kPiece);
    const Status read = applier->archive_.members().ReadAt(
        kRootfsDiffName, applier->layer_position_, std::span(applier->piece_.get(), size));
    if (!read.ok()) {
      archive_set_error(handle, EIO, "%s", Message(read).c_str());
      return -1;
    }
    applier->layer_position_ += size;
    *bytes = applier->piece_.get();
    return static_cast<la_ssize_t>(size);
  }

  Status ApplyLayer() {
    const Utf8Locale locale;  // libarchive turns the names of pax headers into the locale's
    ASSIGN_OR_RETURN(layer_size_, archive_.members().Size(kRootfsDiffName));
    if (layer_size_ == 0) return OkStatus();
    layer_.reset(archive_read_new());
    RETURN_IF_ERROR(SupportFilters(layer_.get()));
    archive_read_support_format_tar(layer_.get());
    archive_read_support_format_empty(layer_.get());
    if (archive_read_open(layer_.get(), this, nullptr, &Applier::GiveBytes, nullptr) !=
        ARCHIVE_OK) {
      return LibarchiveError(layer_.get(), StatusCode::kInvalidArgument, "open");
    }
    while (true) {
      archive_entry* entry = nullptr;
      const int next = archive_read_next_header(layer_.get(), &entry);
      if (next == ARCHIVE_EOF) break;
      // ARCHIVE_WARN is not good enough: the entry would not be what the layer says.
      if (next != ARCHIVE_OK) {
        return LibarchiveError(layer_.get(), StatusCode::kDataLoss, "read");
      }
      if (++report_.entries > request_.max_entries) {
        return ResourceExhausted("over " + std::to_string(request_.max_entries) + " entries");
      }
      RETURN_IF_ERROR(ApplyEntry(entry));
    }
    return SetFolderTimes();
  }

  Status ApplyEntry(struct archive_entry* entry) {
    const char* const name = archive_entry_pathname(entry);
    std::string path = name != nullptr ? name : "";
    while (path.starts_with("./")) path.erase(0, 2);
    if (path.ends_with('/')) path.pop_back();
    if (path.empty() || path == ".") return OkStatus();  // the root itself is the runtime's
    Result<Place> place = root_.Find(path, ConfinedRoot::Parents::kMake);
    if (place.status().code() == StatusCode::kOutOfRange) {
      Note(Message(place.status()) + " and is left alone");
      return OkStatus();
    }
    RETURN_IF_ERROR(place.status());
    if (place->name.starts_with(kWhiteout)) return ApplyMark(*place);
    return Annotate(PutFile(*place, entry), "/" + Printable(path));
  }

  Status ApplyMark(Place place) {
    const std::size_t folder_length = place.path.size() - place.name.size();
    if (place.name == kOpaque) {
      if (folder_length == 0) return InvalidArgument("an opaque mark for the root itself");
      ASSIGN_OR_RETURN(const Place folder, root_.Find(place.path.substr(0, folder_length - 1),
                                                      ConfinedRoot::Parents::kMustExist));
      return root_.RemoveContent(folder);
    }
    place.name.erase(0, kWhiteout.size());
    if (place.name.starts_with(kWhiteout))
      return OkStatus();  // other marks of aufs: nothing for us
    place.path = place.path.substr(0, folder_length) + place.name;
    return RemovePath(place.path);
  }

  Status RemovePath(const std::string& path) {
    const Result<Place> place = root_.Find(path, ConfinedRoot::Parents::kMustExist);
    if (ErrnoOf(place.status()) == ENOENT) return OkStatus();
    const Status removed = place.ok() ? root_.Remove(*place) : place.status();
    if (removed.code() != StatusCode::kOutOfRange) return removed;
    Note(Message(removed) + " and is not removed");
    return OkStatus();
  }

  Status PutFile(const Place& place, struct archive_entry* entry) {
    if (const char* const target = archive_entry_hardlink(entry)) return PutLink(place, target);
    const Attributes attributes = AttributesOf(entry);
    switch (attributes.mode & S_IFMT) {
      case S_IFDIR:
        return PutFolder(place, entry, attributes);
      case S_IFREG:
        return PutRegular(place, entry, attributes);
      case S_IFLNK:
        return PutSymlink(place, entry, attributes);
      case S_IFCHR:
      case S_IFBLK:
        if (request_.allow_devices && archive_entry_rdev(entry) != 0) break;
        Note("/" + Printable(place.path) + " is a device node and is left out");
        return OkStatus();
      case S_IFIFO:
        break;
      default:
        return InvalidArgument("of an unknown type");
    }
    RETURN_IF_ERROR(root_.Remove(place));
    const dev_t device = S_ISFIFO(attributes.mode) ? 0 : archive_entry_rdev(entry);
    if (::mknodat(place.folder, place.name.c_str(), (attributes.mode & S_IFMT) | 0600, device) !=
        0) {
      return SyscallError(errno, "mknod");
    }
    return SetAttributes(place, entry, attributes);
  }

  Status PutFolder(const Place& place, struct archive_entry* entry, const Attributes& attributes) {
    struct stat st = {};
    const bool there = ::fstatat(place.folder, place.name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (!there || !S_ISDIR(st.st_mode)) {
      RETURN_IF_ERROR(root_.Remove(place));
      if (::mkdirat(place.folder, place.name.c_str(), 0700) != 0) {
        return SyscallError(errno, "mkdir");
      }
    }
    folder_times_.emplace_back(place.path, attributes.times);
    return SetAttributes(place, entry, attributes);
  }

  Status PutSymlink(const Place& place, struct archive_entry* entry, const Attributes& attributes) {
    const char* const target = archive_entry_symlink(entry);
    if (target == nullptr) return InvalidArgument("a symbolic link to nothing");
    RETURN_IF_ERROR(root_.Remove(place));
    // Where it leads is the container's affair: we never follow it out of the root.
    if (::symlinkat(target, place.folder, place.name.c_str()) != 0) {
      return SyscallError(errno, "symlink");
    }
    return SetAttributes(place, entry, attributes);
  }

  /// A hard link to the outside is impossible: both ends are found below the root.
  Status PutLink(const Place& place, std::string target) {
    while (target.starts_with("./")) target.erase(0, 2);
    RETURN_IF_ERROR(root_.Remove(place));
    const UniqueFd folder(::fcntl(place.folder, F_DUPFD_CLOEXEC, 0));  // Find() may close it
    ASSIGN_OR_RETURN(const Place source, root_.Find(target, ConfinedRoot::Parents::kMustExist));
    // linkat(2) without AT_SYMLINK_FOLLOW makes a link to a symbolic link, not to what it leads to.
    if (::linkat(source.folder, source.name.c_str(), folder.get(), place.name.c_str(), 0) != 0) {
      return SyscallError(errno, "link to /" + Printable(target));
    }
    return root_.NotePlaced(source);
  }

  Status PutRegular(const Place& place, struct archive_entry* entry, const Attributes& attributes) {
    // A new file each time: writing into the old one would change its other hard links too.
    RETURN_IF_ERROR(root_.Remove(place));
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(place.folder, place.name,
                                               O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0600));
    while (true) {
      const void* bytes = nullptr;
      std::size_t size = 0;
      la_int64_t offset = 0;
      const int got = archive_read_data_block(layer_.get(), &bytes, &size, &offset);
      if (got == ARCHIVE_EOF) break;
      if (got != ARCHIVE_OK) {
        return LibarchiveError(layer_.get(), StatusCode::kDataLoss, "read");
      }
      report_.bytes += size;
      if (report_.bytes > request_.max_bytes) {
        return ResourceExhausted("over " + std::to_string(request_.max_bytes) + " bytes");
      }
      RETURN_IF_ERROR(WriteAt(fd.get(), bytes, size, offset));
    }
    // The end of a sparse file is a hole. The size is a stranger's number until now.
    const la_int64_t size = archive_entry_size(entry);
    if (size < 0 || static_cast<std::uint64_t>(size) > request_.max_bytes) {
      return ResourceExhausted("over " + std::to_string(request_.max_bytes) + " bytes");
    }
    if (::ftruncate(fd.get(), size) != 0) {
      return SyscallError(errno, "truncate");
    }
    return SetAttributes(place, entry, attributes);
  }

  static Status WriteAt(int fd, const void* bytes, std::size_t size, la_int64_t offset) {
    if (::lseek(fd, offset, SEEK_SET) < 0) {
      return SyscallError(errno, "seek");
    }
    return WriteAll(fd, std::span(static_cast<const std::byte*>(bytes), size));
  }

  Status SetAttributes(const Place& place, struct archive_entry* entry,
                       const Attributes& attributes) {
    const char* const name = place.name.c_str();
    ASSIGN_OR_RETURN(const std::uint32_t user, request_.ids.users.ToOutside(attributes.uid));
    ASSIGN_OR_RETURN(const std::uint32_t group, request_.ids.groups.ToOutside(attributes.gid));
    if (::fchownat(place.folder, name, user, group, AT_SYMLINK_NOFOLLOW) != 0) {
      return SyscallError(errno, "chown");
    }
    if (!S_ISLNK(attributes.mode)) {
      ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(place.folder, name, O_PATH | O_NOFOLLOW));
      const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
      if (::chmod(path.c_str(), attributes.mode & 07777) != 0) {
        return SyscallError(errno, "chmod");
      }
      RETURN_IF_ERROR(SetXattrs(path, place, entry));
    }
    if (::utimensat(place.folder, name, attributes.times.data(), AT_SYMLINK_NOFOLLOW) != 0) {
      return SyscallError(errno, "set times");
    }
    return root_.NotePlaced(place);
  }

  Status SetXattrs(const std::string& path, const Place& place, struct archive_entry* entry) {
    archive_entry_xattr_reset(entry);
    const char* name = nullptr;
    const void* value = nullptr;
    std::size_t size = 0;
    while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
      if (!Allowed(name)) {
        Note("/" + Printable(place.path) + ": the attribute " + Printable(name) + " is left out");
        continue;
      }
      ASSIGN_OR_RETURN(
          const std::string set,
          XattrOutside(request_.ids, name, std::string(static_cast<const char*>(value), size)));
      if (::setxattr(path.c_str(), name, set.data(), set.size(), 0) != 0) {
        if (errno != EOPNOTSUPP) {
          return SyscallError(errno, "setxattr " + std::string(name));
        }
        Note("/" + Printable(place.path) + ": the file system has no attribute " + Printable(name));
      }
    }
    return OkStatus();
  }

  /// The rest would be a label of the host's policy, or orders to its overlay.
  bool Allowed(std::string_view xattr) const {
    if (xattr == "security.capability") return request_.allow_capabilities;
    return xattr.starts_with("system.posix_acl_") ||
           (xattr.starts_with("user.") && !xattr.starts_with("user.overlay."));
  }

  Status SetFolderTimes() {
    for (const auto& [path, times] : folder_times_) {
      const Result<Place> place = root_.Find(path, ConfinedRoot::Parents::kMustExist);
      if (!place.ok()) continue;  // a later entry removed it
      if (::utimensat(place->folder, place->name.c_str(), times.data(), AT_SYMLINK_NOFOLLOW) != 0 &&
          errno != ENOENT) {
        return SyscallError(errno, "set times of /" + Printable(path));
      }
    }
    return OkStatus();
  }

  Status ApplyDeletedFiles() {
    ASSIGN_OR_RETURN(const std::string text, archive_.Get(kDeletedFilesName));
    ASSIGN_OR_RETURN(const nlohmann::json paths, ParseArray(text, "the list"));
    for (const nlohmann::json& element : paths) {
      if (!element.is_string()) return InvalidArgument("the list: not of paths");
      std::string path = element.get<std::string>();
      path.erase(0, path.find_first_not_of('/'));
      while (path.ends_with('/')) path.pop_back();
      RETURN_IF_ERROR(RemovePath(path));
    }
    return OkStatus();
  }

  void Note(std::string text) {
    if (report_.notes.size() < kMaxNotes) report_.notes.push_back(std::move(text));
  }

  const RootfsApplyRequest& request_;
  const Archive& archive_;
  ConfinedRoot root_;
  std::uint64_t layer_size_ = 0;
  std::uint64_t layer_position_ = 0;
  std::unique_ptr<std::byte[]> piece_{new std::byte[kPiece]};
  ReadHandle layer_;
  std::vector<std::pair<std::string, std::array<timespec, 2>>> folder_times_;
  RootfsDiffReport report_;
};

}  // namespace

Result<RootfsDiffReport> ApplyRootfsDiff(const RootfsApplyRequest& request,
                                         const Archive& archive) {
  return Applier(request, archive).Run();
}

}  // namespace stasis::archive
