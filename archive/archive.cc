#include "archive/archive.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <span>
#include <utility>

#include "archive/decompress.h"
#include "archive/folder_members.h"
#include "archive/member_name.h"
#include "archive/tar_index.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

class TarMembers : public engine::ImageSource {
 public:
  TarMembers(const Archive& archive, TarIndex index)
      : archive_(archive), index_(std::move(index)) {}

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    names.reserve(index_.files.size());
    for (const auto& [name, extent] : index_.files) names.push_back(name);
    return names;
  }

  Result<std::uint64_t> Size(std::string_view name) const override {
    ASSIGN_OR_RETURN(const Extent extent, Find(name));
    return extent.size;
  }

  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    ASSIGN_OR_RETURN(const Extent extent, Find(name));
    if (offset > extent.size || bytes.size() > extent.size - offset) {
      return DataLoss(std::string(name) + " ends before what is read of it");
    }
    return Annotate(archive_.ReadTar(bytes, extent.offset + offset), name);
  }

  Result<engine::ImagePlace> Locate(std::string_view name) const override {
    ASSIGN_OR_RETURN(const Extent extent, Find(name));
    UniqueFd copy(::fcntl(archive_.file_fd(), F_DUPFD_CLOEXEC, 0));
    if (!copy) {
      return SyscallError(errno, "duplicate the archive's descriptor");
    }
    return engine::ImagePlace{
        .fd = std::move(copy), .offset = extent.offset, .compressed = archive_.compressed()};
  }

 private:
  Result<Extent> Find(std::string_view name) const {
    const auto found = index_.files.find(std::string(name));
    if (found == index_.files.end()) return NotFound("no member \"" + Printable(name) + "\"");
    return found->second;
  }

  const Archive& archive_;  // which owns us
  const TarIndex index_;
};

/// The members under "checkpoint/", by what follows it.
class ImagesView : public engine::ImageSource {
 public:
  explicit ImagesView(const engine::ImageSource& members) : members_(members) {}

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (const std::string& name : members_.Names()) {
      if (name.starts_with(kImagesPrefix)) names.push_back(name.substr(kImagesPrefix.size()));
    }
    return names;
  }

  Result<std::uint64_t> Size(std::string_view name) const override {
    return members_.Size(Whole(name));
  }

  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    return members_.ReadAt(Whole(name), offset, bytes);
  }

  Result<engine::ImagePlace> Locate(std::string_view name) const override {
    return members_.Locate(Whole(name));
  }

 private:
  static std::string Whole(std::string_view name) {
    return std::string(kImagesPrefix) + std::string(name);
  }

  const engine::ImageSource& members_;
};

/// Writers fill the last record, of 10 KiB by default, with zeros (pax(1), "blocksize"). CRI-O and
/// containerd may leave the rest of a longer archive that had the same name.
bool EndsInZeros(const Archive& archive, std::uint64_t from, std::uint64_t to) {
  constexpr std::uint64_t kLargestRecord = std::uint64_t{1} << 20;
  if (to - from > kLargestRecord) return false;
  std::vector<std::byte> rest(to - from);
  return archive.ReadTar(rest, from).ok() &&
         std::all_of(rest.begin(), rest.end(), [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

Result<std::unique_ptr<Archive>> Archive::Open(const std::string& path,
                                               const OpenOptions& options) {
  // O_NONBLOCK: a FIFO must not hold us; it is refused below.
  ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(AT_FDCWD, path, O_RDONLY | O_NONBLOCK));
  return OpenFd(std::move(fd), path, options);
}

Result<std::unique_ptr<Archive>> Archive::OpenFd(UniqueFd fd, const std::string& name,
                                                 const OpenOptions& options) {
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) {
    return SyscallError(errno, "fstat " + name);
  }
  std::unique_ptr<Archive> archive(new Archive);
  archive->name_ = name;
  if (S_ISDIR(st.st_mode)) {
    RETURN_IF_ERROR(Annotate(archive->OpenFolder(std::move(fd), options), name));
  } else if (S_ISREG(st.st_mode)) {
    RETURN_IF_ERROR(Annotate(archive->OpenTar(std::move(fd), options), name));
  } else {
    return InvalidArgument(name + " is neither a regular file nor a folder");
  }
  archive->images_ = std::make_unique<ImagesView>(*archive->members_);
  return archive;
}

Status Archive::OpenFolder(UniqueFd fd, const OpenOptions& options) {
  ASSIGN_OR_RETURN(members_, OpenFolderMembers(std::move(fd), options.max_members));
  return OkStatus();
}

Status Archive::OpenTar(UniqueFd fd, const OpenOptions& options) {
  if (IsZstd(fd.get())) {
    ASSIGN_OR_RETURN(framed_, frames::FramedFile::Open(fd, options.max_bytes));
  }
  if (!framed_) {
    if (!options.unpack && IsCompressed(fd.get())) {
      return InvalidArgument("it is compressed, and not in frames of zstd with a table of them");
    }
    ASSIGN_OR_RETURN(tar_, Decompressed(std::move(fd), options.scratch_folder, options.max_bytes,
                                        options.progress));
  }
  struct stat st = {};
  if (::fstat(file_fd(), &st) != 0) {
    return SyscallError(errno, "fstat");
  }
  file_size_ = static_cast<std::uint64_t>(st.st_size);
  tar_size_ = framed_ ? framed_->plain_size() : file_size_;
  if (tar_size_ > options.max_bytes) {
    return ResourceExhausted("over " + std::to_string(options.max_bytes) + " bytes");
  }
  const auto read = [this](std::span<std::byte> bytes, std::uint64_t offset) {
    return ReadTar(bytes, offset);
  };
  ASSIGN_OR_RETURN(TarIndex index, ReadTarIndex(read, tar_size_, options.max_members));
  if (!EndsInZeros(*this, index.end, tar_size_)) {
    notes_.push_back(std::to_string(tar_size_ - index.end) +
                     " bytes follow the end mark and were ignored");
  }
  members_ = std::make_unique<TarMembers>(*this, std::move(index));
  return OkStatus();
}

Status Archive::ReadTar(std::span<std::byte> bytes, std::uint64_t offset) const {
  return framed_ ? framed_->ReadAt(bytes, offset) : ReadExactAt(tar_.get(), bytes, offset);
}

}  // namespace stasis::archive
