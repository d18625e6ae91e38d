// Source  criu.org "Tmpfs", the images of CRIU 4.2; tar(5)
// Not here  Extended attributes and sockets; files with several names are stored once for each
#include "archive/tmpfs_content.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

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

class ContentReader {
 public:
  ContentReader(int fd, std::uint64_t max_bytes) : folder_(fd), left_bytes_(max_bytes) {}

  Result<TmpfsRestoreReport> Run(std::string_view tar) {
    tar_.reset(archive_read_new());
    RETURN_IF_ERROR(SupportFilters(tar_.get()));
    archive_read_support_format_tar(tar_.get());
    if (archive_read_open_memory(tar_.get(), tar.data(), tar.size()) != ARCHIVE_OK) {
      return Failed("begin");
    }
    while (true) {
      struct archive_entry* entry = nullptr;
      const int got = archive_read_next_header(tar_.get(), &entry);
      if (got == ARCHIVE_EOF) return std::move(report_);
      if (got != ARCHIVE_OK) return Failed("header");
      const char* const name = archive_entry_pathname(entry);
      RETURN_IF_ERROR(Annotate(Put(name == nullptr ? "" : name, entry),
                               Printable(name == nullptr ? "" : name)));
    }
  }

 private:
  Status Failed(std::string_view what) {
    return LibarchiveError(tar_.get(), StatusCode::kDataLoss,
                           "content of a tmpfs: " + std::string(what));
  }

  Status Put(std::string path, struct archive_entry* entry) {
    while (path.starts_with("./")) path.erase(0, 2);
    while (path.ends_with('/')) path.pop_back();
    if (path.empty() || path == ".") return OkStatus();
    RETURN_IF_ERROR(CheckRelativePath(path));
    if (archive_entry_hardlink(entry) != nullptr) return InvalidArgument("a hard link");
    const std::size_t slash = path.rfind('/');
    const std::string name = path.substr(slash == std::string::npos ? 0 : slash + 1);
    ASSIGN_OR_RETURN(const UniqueFd folder,
                     OpenBeneath(slash == std::string::npos ? "." : path.substr(0, slash)));
    const mode_t mode = archive_entry_mode(entry);
    Result<UniqueFd> made = Make(folder.get(), name, mode);
    if (ErrnoOf(made.status()) == EEXIST) {
      if (!S_ISDIR(mode)) report_.kept.push_back(path);
      return OkStatus();
    }
    RETURN_IF_ERROR(made.status());
    if (S_ISREG(mode)) RETURN_IF_ERROR(Fill(made->get(), entry));
    const auto owner = static_cast<uid_t>(archive_entry_uid(entry));
    const auto group = static_cast<gid_t>(archive_entry_gid(entry));
    if (::fchownat(folder.get(), name.c_str(), owner, group, AT_SYMLINK_NOFOLLOW) != 0 ||
        ::fchmodat(folder.get(), name.c_str(), mode & 07777, 0) != 0) {
      return SyscallError(errno, "owner and mode");
    }
    return OkStatus();
  }

  Result<UniqueFd> OpenBeneath(const std::string& path) const {
    open_how how = {};
    how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
    UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, folder_, path.c_str(), &how, sizeof(how))));
    if (!fd) return SyscallError(errno, "open its folder");
    return fd;
  }

  // A file of that type with that name, which must be free; a descriptor of a regular one.
  static Result<UniqueFd> Make(int folder, const std::string& name, mode_t mode) {
    if (S_ISREG(mode)) {
      return OpenAt(folder, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0600);
    }
    int result = 0;
    if (S_ISDIR(mode)) {
      result = ::mkdirat(folder, name.c_str(), 0700);
    } else if (S_ISFIFO(mode)) {
      result = ::mkfifoat(folder, name.c_str(), 0600);
    } else {
      return InvalidArgument("of another type than a file, a folder or a FIFO");
    }
    if (result != 0) return SyscallError(errno, "make it");
    return UniqueFd();
  }

  Status Fill(int file, struct archive_entry* entry) {
    const la_int64_t size = archive_entry_size(entry);
    if (size < 0 || static_cast<std::uint64_t>(size) > left_bytes_) {
      return ResourceExhausted("too large");
    }
    left_bytes_ -= static_cast<std::uint64_t>(size);
    std::string content(static_cast<std::size_t>(size), '\0');
    if (archive_read_data(tar_.get(), content.data(), content.size()) != size) {
      return Failed("file");
    }
    return WriteAll(file, content);
  }

  const int folder_;
  std::uint64_t left_bytes_;
  ReadHandle tar_;
  TmpfsRestoreReport report_;
};

}  // namespace

Result<TmpfsRestoreReport> RestoreTmpfsContent(int fd, std::string_view tar,
                                               std::uint64_t max_bytes) {
  return ContentReader(fd, max_bytes).Run(tar);
}

Result<std::string> ReadTmpfsContent(int fd, std::uint64_t max_bytes) {
  return ContentWriter(max_bytes).Run(fd);
}

}  // namespace stasis::archive
