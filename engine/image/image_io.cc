#include "engine/image/image_io.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {
namespace {

bool IsPlainName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

Result<std::vector<std::string>> ListDirectory(int dir_fd) {
  UniqueFd copy(::openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!copy) {
    return SyscallError(errno, "open the image directory");
  }
  DIR* const dir = ::fdopendir(copy.get());
  if (dir == nullptr) {
    return SyscallError(errno, "read the image directory");
  }
  (void)copy.Release();  // closedir() owns it now
  std::vector<std::string> names;
  while (const dirent* const entry = ::readdir(dir)) {
    if (const std::string name = entry->d_name; name != "." && name != "..") names.push_back(name);
  }
  ::closedir(dir);
  return names;
}

class DirectorySource : public ImageSource {
 public:
  DirectorySource(UniqueFd dir, std::vector<std::string> names)
      : dir_(std::move(dir)), names_(std::move(names)) {}

  std::vector<std::string> Names() const override { return names_; }

  Result<std::uint64_t> Size(std::string_view name) const override {
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenFile(name));
    struct stat st = {};
    if (::fstat(fd.get(), &st) != 0) {
      return SyscallError(errno, "fstat " + std::string(name));
    }
    return static_cast<std::uint64_t>(st.st_size);
  }

  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    ASSIGN_OR_RETURN(const UniqueFd fd, OpenFile(name));
    return Annotate(ReadExactAt(fd.get(), bytes, offset), name);
  }

  Result<ImagePlace> Locate(std::string_view name) const override {
    ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(name));
    return ImagePlace{.fd = std::move(fd)};
  }

 private:
  Result<UniqueFd> OpenFile(std::string_view name) const {
    // CRIU's link to the checkpoint that an incremental one is based on.
    constexpr std::string_view kParent = "parent/";
    UniqueFd parent;
    while (name.starts_with(kParent)) {
      const int from = parent ? parent.get() : dir_.get();
      ASSIGN_OR_RETURN(parent, OpenAt(from, "parent", O_PATH | O_DIRECTORY));
      name.remove_prefix(kParent.size());
    }
    if (!IsPlainName(name)) return InvalidArgument("image file name");
    // O_NONBLOCK: a FIFO in a hostile directory must not hold us.
    ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(parent ? parent.get() : dir_.get(), std::string(name),
                                         O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
    struct stat st = {};
    if (::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) {
      return InvalidArgument(std::string(name) + " is not a regular file");
    }
    return fd;
  }

  UniqueFd dir_;
  std::vector<std::string> names_;
};

}  // namespace

Status FillInOrder(std::uint64_t size, const ReadPiece& read, const WritePiece& write,
                   const PassedOn& passed_on) {
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;  // stays in the processor's cache
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(std::min(size, kPiece));
  for (std::uint64_t offset = 0; offset < size;) {
    const std::span piece(buffer.get(), std::min(size - offset, kPiece));
    RETURN_IF_ERROR(read(offset, piece));
    RETURN_IF_ERROR(write(piece));
    RETURN_IF_ERROR(passed_on(piece.size()));
    offset += piece.size();
  }
  return OkStatus();
}

Status ImageSink::Fill(std::span<const ImageContent> files, const PassedOn& passed_on) {
  for (const ImageContent& file : files) {
    ASSIGN_OR_RETURN(const auto stream, Open(file.name, file.size));
    RETURN_IF_ERROR(stream->Fill(file.size, file.read, passed_on));
    RETURN_IF_ERROR(stream->Finish());
  }
  return OkStatus();
}

Status ImageStream::Fill(std::uint64_t size, const ReadPiece& read, const PassedOn& passed_on) {
  const auto write = [this](std::span<const std::byte> bytes) { return Write(bytes); };
  return FillInOrder(size, read, write, passed_on);
}

Status ImageSink::Put(std::string_view name, std::string_view bytes) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ImageStream> stream, Open(name, bytes.size()));
  RETURN_IF_ERROR(stream->Write(std::as_bytes(std::span(bytes.data(), bytes.size()))));
  return stream->Finish();
}

Result<ImagePlace> ImageSource::Locate(std::string_view name) const {
  return Unimplemented(std::string(name) + " is in no file of its own");
}

Result<std::string> ImageSource::Get(std::string_view name, std::uint64_t limit_bytes) const {
  ASSIGN_OR_RETURN(const std::uint64_t size, Size(name));
  if (size > limit_bytes) {
    return ResourceExhausted(std::string(name) + " has " + std::to_string(size) +
                             " bytes, over the " + std::to_string(limit_bytes) +
                             " that such a file may have");
  }
  std::string bytes(size, '\0');
  RETURN_IF_ERROR(ReadAt(name, 0, std::as_writable_bytes(std::span(bytes.data(), bytes.size()))));
  return bytes;
}

Result<std::unique_ptr<ImageSource>> OpenDirectorySource(const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd dir, OpenAt(AT_FDCWD, path, O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(std::vector<std::string> names, ListDirectory(dir.get()));
  return std::make_unique<DirectorySource>(std::move(dir), std::move(names));
}

}  // namespace stasis::engine
