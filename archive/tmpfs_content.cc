// Source  criu.org "Tmpfs", the images of CRIU 4.2; tar(5)
// Not here  Extended attributes and sockets; files with several names are stored once for each
#include "archive/tmpfs_content.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "archive/folder_names.h"
#include "archive/libarchive.h"
#include "archive/member_name.h"
#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {
namespace {

constexpr int kMaxDepth = 512;  // one descriptor a level

class ContentWriter {
 public:
  explicit ContentWriter(std::uint64_t max_bytes) : left_bytes_(max_bytes) {}

  Result<std::string> Run(int fd) {
    struct stat st = {};
    if (::fstat(fd, &st) != 0) {
      return SyscallError(errno, "fstat");
    }
    device_ = st.st_dev;
    tar_.reset(archive_write_new());
    archive_write_set_format_gnutar(tar_.get());
    archive_write_add_filter_gzip(tar_.get());
    archive_write_set_bytes_in_last_block(tar_.get(), 1);
    if (archive_write_open(tar_.get(), this, nullptr, &ContentWriter::TakeBytes, nullptr) !=
        ARCHIVE_OK) {
      return Failed("begin");
    }
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
    ASSIGN_OR_RETURN(const UniqueFd file, OpenAt(folder, name, O_PATH | O_NOFOLLOW));
    struct stat st = {};
    if (::fstat(file.get(), &st) != 0) {
      return SyscallError(errno, "fstat");
    }
    const bool is_mounted_on = st.st_dev != device_;
    if (S_ISSOCK(st.st_mode) || (is_mounted_on && !S_ISDIR(st.st_mode))) return OkStatus();
    RETURN_IF_ERROR(WriteHeader(file.get(), st, path));
    if (S_ISREG(st.st_mode)) return WriteContent(file.get(), st);
    if (!S_ISDIR(st.st_mode) || is_mounted_on) return OkStatus();
    ASSIGN_OR_RETURN(const UniqueFd inner, OpenAt(file.get(), ".", O_RDONLY | O_DIRECTORY));
    return WriteFolder(inner.get(), path + "/", depth + 1);
  }

  Status WriteHeader(int file, const struct stat& st, const std::string& path) {
    const EntryHandle entry(archive_entry_new());
    archive_entry_copy_stat(entry.get(), &st);
    archive_entry_set_nlink(entry.get(), 1);
    archive_entry_copy_pathname(entry.get(), path.c_str());
    if (S_ISLNK(st.st_mode)) {
      ASSIGN_OR_RETURN(const std::string link, ReadLinkAt(file, ""));
      archive_entry_copy_symlink(entry.get(), link.c_str());
    }
    return archive_write_header(tar_.get(), entry.get()) == ARCHIVE_OK ? OkStatus()
                                                                       : Failed("header");
  }

  Status WriteContent(int file, const struct stat& st) {
    const auto size = static_cast<std::uint64_t>(st.st_size);
    if (size > left_bytes_) return ResourceExhausted("too large");
    left_bytes_ -= size;
    ASSIGN_OR_RETURN(const UniqueFd fd,
                     OpenAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(file), O_RDONLY));
    std::string content(static_cast<std::size_t>(size), '\0');
    RETURN_IF_ERROR(ReadExactAt(fd.get(), std::as_writable_bytes(std::span(content)), 0));
    const auto written = archive_write_data(tar_.get(), content.data(), content.size());
    return written == static_cast<la_ssize_t>(content.size()) ? OkStatus() : Failed("file");
  }

  WriteHandle tar_;
  std::string bytes_;
  dev_t device_ = 0;
  std::uint64_t left_bytes_;
};

}  // namespace

Result<std::string> ReadTmpfsContent(int fd, std::uint64_t max_bytes) {
  return ContentWriter(max_bytes).Run(fd);
}

}  // namespace stasis::archive
