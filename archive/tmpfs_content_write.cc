// Source  criu.org "Tmpfs", the images of CRIU 4.2; tar(5), lseek(2) SEEK_DATA
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <utility>

#include "archive/folder_names.h"
#include "archive/libarchive.h"
#include "archive/member_name.h"
#include "archive/tmpfs_content.h"
#include "archive/xattrs.h"
#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {
namespace {

constexpr int kMaxDepth = 512;  // one descriptor a level
constexpr std::size_t kMaxEntries = 1'000'000;
constexpr std::size_t kPiece = std::size_t{256} << 10;
// Holes are not kept, but are gone through.
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{1} << 36;

// Labels belong to the host's policy.
bool BelongsToTheFile(const std::string& xattr) {
  return xattr == "security.capability" || !xattr.starts_with("security.");
}

struct Extent {
  std::uint64_t start = 0, end = 0;
};

Result<std::vector<Extent>> Data(int fd, std::uint64_t size) {
  std::vector<Extent> data;
  for (std::uint64_t at = 0; at < size;) {
    const off_t start = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (start < 0 && errno == ENXIO) break;  // the rest is a hole
    if (start < 0) return SyscallError(errno, "lseek SEEK_DATA");
    const off_t end = ::lseek(fd, start, SEEK_HOLE);
    if (end < 0) return SyscallError(errno, "lseek SEEK_HOLE");
    at = std::min(static_cast<std::uint64_t>(end), size);
    data.push_back({static_cast<std::uint64_t>(start), at});
  }
  return data;
}

class ContentWriter {
 public:
  ContentWriter(std::uint64_t max_bytes, const UserIds& ids) : left_bytes_(max_bytes), ids_(ids) {}

  Result<std::string> Run(int fd) {
    struct stat st = {};
    if (::fstat(fd, &st) != 0) {
      return SyscallError(errno, "fstat");
    }
    device_ = st.st_dev;
    tar_.reset(archive_write_new());
    archive_write_set_format_pax(tar_.get());
    archive_write_add_filter_gzip(tar_.get());
    // Names are bytes, not text of this process's locale; and one form of xattrs is enough. The tree waits meanwhile.
    if (archive_write_set_options(tar_.get(),
                                  "pax:hdrcharset=BINARY,pax:xattrheader=SCHILY,"
                                  "gzip:compression-level=1") != ARCHIVE_OK) {
      return Failed("set its format");
    }
    archive_write_set_bytes_in_last_block(tar_.get(), 1);
    if (archive_write_open(tar_.get(), this, nullptr, &ContentWriter::TakeBytes, nullptr) !=
        ARCHIVE_OK) {
      return Failed("begin");
    }
    RETURN_IF_ERROR(WriteHeader(fd, st, "./", {}));
    RETURN_IF_ERROR(WriteFolder(fd, "./", 0));
    if (archive_write_close(tar_.get()) != ARCHIVE_OK) return Failed("end");
    return std::move(bytes_);
  }

 private:
  static la_ssize_t TakeBytes(struct archive*, void* self, const void* bytes, std::size_t size) {
    static_cast<ContentWriter*>(self)->bytes_.append(static_cast<const char*>(bytes), size);
    return static_cast<la_ssize_t>(size);
  }

  Status Failed(std::string_view what) {
    return LibarchiveError(tar_.get(), StatusCode::kInternal,
                           "content of a tmpfs: " + std::string(what));
  }

  Status WriteFolder(int fd, const std::string& prefix, int depth) {
    if (depth > kMaxDepth) return ResourceExhausted(Printable(prefix) + ": nested too deep");
    ASSIGN_OR_RETURN(const std::vector<std::string> names, FolderNames(fd));
    for (const std::string& name : names) {
      RETURN_IF_ERROR(
          Annotate(WriteFile(fd, name, prefix + name, depth), Printable(prefix + name)));
    }
    return OkStatus();
  }

  Status WriteFile(int folder, const std::string& name, const std::string& path, int depth) {
    if (++entries_ > kMaxEntries) return ResourceExhausted("too many files");
    ASSIGN_OR_RETURN(const UniqueFd file, OpenAt(folder, name, O_PATH | O_NOFOLLOW));
    struct stat st = {};
    if (::fstat(file.get(), &st) != 0) {
      return SyscallError(errno, "fstat");
    }
    const bool is_mounted_on = st.st_dev != device_;
    if (S_ISSOCK(st.st_mode) || (is_mounted_on && !S_ISDIR(st.st_mode))) return OkStatus();
    if (S_ISREG(st.st_mode)) return WriteRegular(file.get(), st, path);
    RETURN_IF_ERROR(WriteHeader(file.get(), st, path, {}));
    if (!S_ISDIR(st.st_mode) || is_mounted_on) return OkStatus();
    ASSIGN_OR_RETURN(const UniqueFd inner, OpenAt(file.get(), ".", O_RDONLY | O_DIRECTORY));
    return WriteFolder(inner.get(), path + "/", depth + 1);
  }

  EntryHandle EntryOf(struct stat st, const std::string& path) {
    ids_.ShowInside(st);
    EntryHandle entry(archive_entry_new());
    archive_entry_copy_stat(entry.get(), &st);
    archive_entry_set_nlink(entry.get(), 1);
    archive_entry_unset_atime(entry.get());  // they would cost every file a pax header
    archive_entry_unset_ctime(entry.get());
    archive_entry_unset_birthtime(entry.get());
    archive_entry_copy_pathname(entry.get(), path.c_str());
    return entry;
  }

  // ARCHIVE_WARN is not good enough: something of the file would be missing.
  Status Put(const EntryHandle& entry) {
    return archive_write_header(tar_.get(), entry.get()) == ARCHIVE_OK ? OkStatus()
                                                                       : Failed("header");
  }

  Status WriteHeader(int file, const struct stat& st, const std::string& path,
                     const std::vector<Extent>& data) {
    const EntryHandle entry = EntryOf(st, path);
    if (S_ISLNK(st.st_mode)) {
      ASSIGN_OR_RETURN(const std::string link, ReadLinkAt(file, ""));
      archive_entry_copy_symlink(entry.get(), link.c_str());
      return Put(entry);
    }
    ASSIGN_OR_RETURN(Xattrs xattrs, ReadXattrs(file));
    ShowXattrsInside(ids_, xattrs);
    for (const auto& [name, value] : xattrs) {
      if (!BelongsToTheFile(name)) continue;
      archive_entry_xattr_add_entry(entry.get(), name.c_str(), value.data(), value.size());
    }
    for (const Extent& extent : data) {
      archive_entry_sparse_add_entry(entry.get(), static_cast<la_int64_t>(extent.start),
                                     static_cast<la_int64_t>(extent.end - extent.start));
    }
    return Put(entry);
  }

  Status WriteRegular(int file, const struct stat& st, const std::string& path) {
    if (st.st_nlink > 1) {
      const auto [first, is_new] = links_.try_emplace(st.st_ino, path);
      if (!is_new) {
        const EntryHandle entry = EntryOf(st, path);
        archive_entry_copy_hardlink(entry.get(), first->second.c_str());
        archive_entry_set_size(entry.get(), 0);
        return Put(entry);
      }
    }
    const auto size = static_cast<std::uint64_t>(st.st_size);
    ASSIGN_OR_RETURN(const UniqueFd fd,
                     OpenAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(file), O_RDONLY));
    ASSIGN_OR_RETURN(std::vector<Extent> data, Data(fd.get(), size));
    std::uint64_t bytes = 0;
    for (const Extent& extent : data) bytes += extent.end - extent.start;
    if (bytes > left_bytes_ || size > kMaxFileBytes) return ResourceExhausted("too large");
    left_bytes_ -= bytes;
    const bool has_holes = bytes < size;
    // libarchive's word for a file that is nothing but a hole.
    if (has_holes && data.empty()) data.push_back({0, 0});
    RETURN_IF_ERROR(WriteHeader(file, st, path, has_holes ? data : std::vector<Extent>()));
    for (std::uint64_t at = 0; const Extent& extent : data) {
      RETURN_IF_ERROR(WriteHole(extent.start - at));
      RETURN_IF_ERROR(WriteContent(fd.get(), extent));
      at = extent.end;
    }
    return WriteHole(size - (data.empty() ? 0 : data.back().end));
  }

  // Its bytes are asked for, and thrown away.
  Status WriteHole(std::uint64_t left) {
    if (left > 0) std::fill_n(piece_.get(), kPiece, std::byte{});
    for (; left > 0; left -= std::min<std::uint64_t>(left, kPiece)) {
      RETURN_IF_ERROR(Write(std::min<std::uint64_t>(left, kPiece)));
    }
    return OkStatus();
  }

  Status WriteContent(int fd, const Extent& extent) {
    for (std::uint64_t at = extent.start; at < extent.end;) {
      const std::size_t size = std::min<std::uint64_t>(extent.end - at, kPiece);
      RETURN_IF_ERROR(ReadExactAt(fd, std::span(piece_.get(), size), at));
      RETURN_IF_ERROR(Write(size));
      at += size;
    }
    return OkStatus();
  }

  Status Write(std::size_t size) {
    const la_ssize_t written = archive_write_data(tar_.get(), piece_.get(), size);
    return written == static_cast<la_ssize_t>(size) ? OkStatus() : Failed("file");
  }

  WriteHandle tar_;
  std::string bytes_;
  dev_t device_ = 0;
  std::uint64_t left_bytes_;
  const UserIds& ids_;
  std::size_t entries_ = 0;
  std::map<ino_t, std::string> links_;
  std::unique_ptr<std::byte[]> piece_{new std::byte[kPiece]};
};

}  // namespace

Result<std::string> ReadTmpfsContent(int fd, std::uint64_t max_bytes, const UserIds& ids) {
  return ContentWriter(max_bytes, ids).Run(fd);
}

}  // namespace stasis::archive
