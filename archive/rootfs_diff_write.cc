// From an overlay's upper folder to a layer.
//
// State   kernel's Documentation/filesystems/overlayfs.rst: a whiteout is a character device 0:0
//         or, in folders marked opaque "x" (Linux 6.7), an empty file with the xattr
//         "overlay.whiteout"; an opaque folder has the xattr "overlay.opaque" = "y"; all under
//         "trusted." or "user."
// Not here Sockets, which live in the kernel and not in the file; content elsewhere (redirect,
//         metacopy)
#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "archive/folder_names.h"
#include "archive/left_out_paths.h"
#include "archive/libarchive.h"
#include "archive/member_name.h"
#include "archive/rootfs_diff.h"
#include "archive/xattrs.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr int kMaxDepth = 512;  // one descriptor a level
constexpr std::size_t kPiece = std::size_t{256} << 10;

/// A path that names the file behind `fd` for calls that take no O_PATH descriptor.
std::string ProcPath(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

std::optional<std::string> OverlayXattr(const Xattrs& xattrs, const std::string& name) {
  for (const char* const space : {"trusted.overlay.", "user.overlay."}) {
    if (const auto found = xattrs.find(space + name); found != xattrs.end()) return found->second;
  }
  return std::nullopt;
}

/// Labels belong to the host's policy, and "trusted." to its overlays.
bool BelongsToTheFile(const std::string& xattr) {
  return xattr == "security.capability" || xattr.starts_with("system.posix_acl_") ||
         (xattr.starts_with("user.") && !xattr.starts_with("user.overlay."));
}

class LayerWriter {
 public:
  LayerWriter(const RootfsDiffRequest& request, engine::ImageStream& out)
      : upper_fd_(request.upper_fd), left_out_(request.leave_out), ids_(request.ids), out_(out) {}

  Result<RootfsDiffReport> Run() {
    RETURN_IF_ERROR(Open());
    RETURN_IF_ERROR(WriteFolder(upper_fd_, "", 0));
    if (archive_write_close(layer_.get()) != ARCHIVE_OK) return Failed("end the layer");
    RETURN_IF_ERROR(out_.Finish());
    return std::move(report_);
  }

 private:
  struct File {
    UniqueFd fd;  ///< O_PATH: looking at a FIFO or a device must not open it.
    struct stat st = {};
    Xattrs xattrs;
  };

  Status Open() {
    layer_.reset(archive_write_new());
    archive_write_set_format_pax(layer_.get());
    // Names are bytes, not text of this process's locale; and one form of xattrs is enough.
    if (archive_write_set_options(layer_.get(), "pax:hdrcharset=BINARY,pax:xattrheader=SCHILY") !=
        ARCHIVE_OK) {
      return Failed("set the layer's format");
    }
    archive_write_set_bytes_per_block(layer_.get(), static_cast<int>(kPiece));
    archive_write_set_bytes_in_last_block(layer_.get(), 1);
    if (archive_write_open(layer_.get(), this, nullptr, &LayerWriter::TakeBytes, nullptr) !=
        ARCHIVE_OK) {
      return Failed("begin the layer");
    }
    return OkStatus();
  }

  static la_ssize_t TakeBytes(struct archive* handle, void* self, const void* bytes,
                              std::size_t size) {
    auto* const writer = static_cast<LayerWriter*>(self);
    writer->out_status_ = writer->out_.Write({static_cast<const std::byte*>(bytes), size});
    if (writer->out_status_.ok()) return static_cast<la_ssize_t>(size);
    archive_set_error(handle, EIO, "write");
    return -1;
  }

  Status Failed(std::string_view what) {
    if (!out_status_.ok()) return out_status_;
    return LibarchiveError(layer_.get(), StatusCode::kInternal, what);
  }

  Status WriteFolder(int fd, const std::string& prefix, int depth) {
    if (depth > kMaxDepth) {
      return ResourceExhausted("/" + Printable(prefix) + ": folders nested over " +
                               std::to_string(kMaxDepth) + " deep");
    }
    ASSIGN_OR_RETURN(const std::vector<std::string> names, FolderNames(fd));
    for (const std::string& name : names) {
      const std::string path = prefix + name;
      if (left_out_.Covers(path)) continue;
      const Result<UniqueFd> folder = WriteFile(fd, name, path);
      if (!folder.ok()) return Annotate(folder.status(), "/" + Printable(path));
      if (*folder) RETURN_IF_ERROR(WriteFolder(folder->get(), path + "/", depth + 1));
    }
    return OkStatus();
  }

  /// The descriptor of the file when it is a folder, whose content comes next.
  Result<UniqueFd> WriteFile(int folder, const std::string& name, const std::string& path) {
    if (name.starts_with(".wh.")) {
      report_.notes.push_back("/" + Printable(path) +
                              " is left out: in a layer its name would mean a removed file");
      return UniqueFd();
    }
    File file;
    ASSIGN_OR_RETURN(file.fd, OpenAt(folder, name, O_PATH | O_NOFOLLOW));
    if (::fstat(file.fd.get(), &file.st) != 0) {
      return SyscallError(errno, "fstat");
    }
    ids_.ShowInside(file.st);
    // A link's own xattrs cannot be reached through /proc; user.* cannot be on one (xattr(7)).
    if (!S_ISLNK(file.st.st_mode)) {
      ASSIGN_OR_RETURN(file.xattrs, ReadXattrs(file.fd.get()));
      ShowXattrsInside(ids_, file.xattrs);
    }
    Status written;
    if (IsWhiteout(file)) {
      written = WriteMark(path.substr(0, path.size() - name.size()) + ".wh." + name);
    } else if (const Status supported = CheckSupported(file); !supported.ok()) {
      written = supported;
    } else if (S_ISDIR(file.st.st_mode)) {
      return WriteFolderHeader(file, path);
    } else if (!S_ISSOCK(file.st.st_mode)) {
      written = WriteLeaf(file, path);
    }
    RETURN_IF_ERROR(written);
    return UniqueFd();
  }

  Result<UniqueFd> WriteFolderHeader(const File& file, const std::string& path) {
    RETURN_IF_ERROR(WriteHeader(file, path, /*target=*/nullptr));
    if (OverlayXattr(file.xattrs, "opaque") == "y") {
      RETURN_IF_ERROR(WriteMark(path + "/.wh..wh..opq"));
    }
    return OpenAt(file.fd.get(), ".", O_RDONLY | O_DIRECTORY);
  }

  static bool IsWhiteout(const File& file) {
    if (S_ISCHR(file.st.st_mode)) return file.st.st_rdev == makedev(0, 0);
    return S_ISREG(file.st.st_mode) && file.st.st_size == 0 &&
           OverlayXattr(file.xattrs, "whiteout").has_value();
  }

  static Status CheckSupported(const File& file) {
    for (const std::string elsewhere : {"redirect", "metacopy"}) {
      if (OverlayXattr(file.xattrs, elsewhere)) {
        return Unimplemented("the overlay keeps its content elsewhere (" + elsewhere +
                             "); mount the runtime's overlays with redirect_dir=off,metacopy=off");
      }
    }
    return OkStatus();
  }

  Status WriteMark(const std::string& path) {
    const EntryHandle entry(archive_entry_new());
    archive_entry_copy_pathname(entry.get(), path.c_str());
    archive_entry_set_filetype(entry.get(), AE_IFREG);
    archive_entry_set_size(entry.get(), 0);
    archive_entry_set_mtime(entry.get(), 0, 0);
    return Put(entry.get());
  }

  Status WriteLeaf(const File& file, const std::string& path) {
    if (file.st.st_nlink > 1) {
      const auto [first, is_new] = links_.try_emplace({file.st.st_dev, file.st.st_ino}, path);
      if (!is_new) return WriteHeader(file, path, &first->second);
    }
    RETURN_IF_ERROR(WriteHeader(file, path, /*target=*/nullptr));
    return S_ISREG(file.st.st_mode) ? WriteContent(file) : OkStatus();
  }

  Status WriteHeader(const File& file, const std::string& path, const std::string* target) {
    const EntryHandle entry(archive_entry_new());
    archive_entry_copy_stat(entry.get(), &file.st);
    archive_entry_copy_pathname(entry.get(), path.c_str());
    archive_entry_unset_atime(entry.get());  // they would cost every file a pax header
    archive_entry_unset_ctime(entry.get());
    archive_entry_unset_birthtime(entry.get());
    if (target != nullptr) {
      archive_entry_copy_hardlink(entry.get(), target->c_str());
      archive_entry_set_size(entry.get(), 0);
      return Put(entry.get());
    }
    if (S_ISLNK(file.st.st_mode)) {
      ASSIGN_OR_RETURN(const std::string link, ReadLinkAt(file.fd.get(), ""));
      archive_entry_copy_symlink(entry.get(), link.c_str());
    }
    for (const auto& [name, value] : file.xattrs) {
      if (!BelongsToTheFile(name)) continue;
      archive_entry_xattr_add_entry(entry.get(), name.c_str(), value.data(), value.size());
    }
    return Put(entry.get());
  }

  Status Put(struct archive_entry* entry) {
    // ARCHIVE_WARN: something of the entry could not be written; that must not pass in silence.
    if (archive_write_header(layer_.get(), entry) != ARCHIVE_OK) {
      return Failed("write the header of " + Printable(archive_entry_pathname(entry)));
    }
    ++report_.entries;
    return OkStatus();
  }

  Status WriteContent(const File& file) {
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(AT_FDCWD, ProcPath(file.fd.get()), O_RDONLY));
    auto left = static_cast<std::uint64_t>(file.st.st_size);
    report_.bytes += left;
    for (std::uint64_t offset = 0; left > 0;) {
      const std::span<std::byte> part =
          std::span(piece_.get(), static_cast<std::size_t>(std::min<std::uint64_t>(left, kPiece)));
      RETURN_IF_ERROR(ReadExactAt(fd.get(), part, offset));
      if (archive_write_data(layer_.get(), part.data(), part.size()) !=
          static_cast<la_ssize_t>(part.size())) {
        return Failed("write content");
      }
      offset += part.size();
      left -= part.size();
    }
    return OkStatus();
  }

  const int upper_fd_;
  const LeftOutPaths left_out_;
  const UserIds ids_;
  engine::ImageStream& out_;
  Status out_status_;
  WriteHandle layer_;
  std::map<std::pair<dev_t, ino_t>, std::string> links_;
  std::unique_ptr<std::byte[]> piece_{new std::byte[kPiece]};
  RootfsDiffReport report_;
};

}  // namespace

Result<RootfsDiffReport> WriteRootfsDiff(const RootfsDiffRequest& request,
                                         engine::ImageStream& out) {
  return LayerWriter(request, out).Run();
}

}  // namespace stasis::archive
