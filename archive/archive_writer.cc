#include "archive/archive_writer.h"

#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

#include "archive/member_name.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr unsigned kMemberMode = 0600;
constexpr unsigned kDirectoryMode = 0700;
constexpr std::uint64_t kPageAlignment = 4096;
constexpr std::string_view kParentPrefix = "parent/";
constexpr std::size_t kCopyPiece = std::size_t{256} << 10;

/// The length of a pax comment that puts the content of a member whose headers begin at `position`
/// on a page boundary, so that pages can be read or mapped straight from the archive. 0: none is
/// needed.
std::uint64_t AlignmentComment(std::uint64_t position) {
  const std::uint64_t content = (position + kTarBlock) % kPageAlignment;
  if (content == 0) return 0;
  const std::uint64_t gap = kPageAlignment - content;
  return gap > kTarBlock ? gap - kTarBlock : kPageAlignment;  // its header takes a block too
}

bool HoldsPages(std::string_view name) {
  return name.substr(0, kImagesPrefix.size()) == kImagesPrefix &&
         name.substr(kImagesPrefix.size(), 6) == "pages-";
}

}  // namespace

/// Writes one member. With a known size it takes exactly that many bytes.
class ArchiveWriter::Stream : public engine::ImageStream {
 public:
  Stream(ArchiveWriter& writer, std::string name, const std::uint64_t* size)
      : writer_(writer), name_(std::move(name)), sized_(size != nullptr), size_(size ? *size : 0) {}

  ~Stream() override {
    if (finished_) return;
    writer_.broken_ = true;
    writer_.stream_open_ = false;
  }

  Status Write(std::span<const std::byte> bytes) override {
    if (sized_ && bytes.size() > size_ - written_) {
      return Internal(name_ + ": more bytes than announced");
    }
    const Status written = writer_.Write(bytes);
    if (!written.ok()) return Annotate(written, name_);
    written_ += bytes.size();
    return OkStatus();
  }

  Status Fill(std::uint64_t size, const engine::ReadPiece& read,
              const engine::PassedOn& passed_on) override {
    const Status status = FillLater(size, read, passed_on);
    const Status filled = writer_.AwaitFilled();
    return status.ok() ? filled : status;
  }

  // Until AwaitFilled().
  Status FillLater(std::uint64_t size, const engine::ReadPiece& read,
                   const engine::PassedOn& passed_on) {
    if (sized_ && size > size_ - written_) return Internal(name_ + ": more bytes than announced");
    const Status filled = writer_.Written(writer_.output_->Fill(size, read, passed_on), size);
    if (!filled.ok()) return Annotate(filled, name_);
    written_ += size;
    return OkStatus();
  }

  Status Finish() override {
    if (sized_ && written_ != size_) {
      return FailedPrecondition(name_ + ": fewer bytes than announced");
    }
    RETURN_IF_ERROR(Annotate(writer_.EndMember(written_, sized_), name_));
    if (name_.starts_with(kImagesPrefix)) {
      writer_.image_files_.push_back(
          {.header_position = writer_.header_position_, .member = writer_.members_.size()});
    }
    writer_.members_.push_back({.name = name_, .size = written_, .xxh128 = {}, .sha256 = {}});
    finished_ = true;
    return OkStatus();
  }

 private:
  ArchiveWriter& writer_;
  const std::string name_;
  const bool sized_;
  const std::uint64_t size_;
  std::uint64_t written_ = 0;
  bool finished_ = false;
};

Result<std::unique_ptr<engine::ImageStream>> ArchiveWriter::Images::Open(std::string_view name,
                                                                         std::uint64_t size_bytes) {
  if (name.find('/') != std::string_view::npos) return InvalidArgument("image file name");
  return writer_.BeginMember(std::string(kImagesPrefix) + std::string(name), &size_bytes);
}

Status ArchiveWriter::Images::Fill(std::span<const engine::ImageContent> files,
                                   const engine::PassedOn& passed_on) {
  const auto fill = [&](const engine::ImageContent& file) -> Status {
    ASSIGN_OR_RETURN(const auto stream,
                     writer_.BeginMember(std::string(kImagesPrefix) + file.name, &file.size));
    RETURN_IF_ERROR(stream->FillLater(file.size, file.read, passed_on));
    return stream->Finish();
  };
  Status status;
  for (const engine::ImageContent& file : files) {
    status = fill(file);
    if (!status.ok()) break;
  }
  const Status filled = writer_.AwaitFilled();
  return status.ok() ? filled : status;
}

Result<std::unique_ptr<ArchiveWriter>> ArchiveWriter::Create(
    const std::string& location, const std::optional<Compression>& compression) {
  if (location.empty() || location[0] != '/') {
    return InvalidArgument("the archive's location \"" + location + "\" is not an absolute path");
  }
  ASSIGN_OR_RETURN(PendingFile file, PendingFile::Create(location));
  std::unique_ptr<ArchiveWriter> writer(new ArchiveWriter(std::move(file), compression));
  const TarHeader directory =
      MakeTarHeader(kImagesPrefix, kTarDirectory, 0, kDirectoryMode, writer->mtime_);
  RETURN_IF_ERROR(writer->Write(std::as_bytes(std::span(&directory, 1))));
  return writer;
}

ArchiveWriter::ArchiveWriter(PendingFile file, const std::optional<Compression>& compression)
    : file_(std::move(file)),
      images_(*this),
      compressed_(compression),
      output_(compression ? MakeCompressedOutput(file_.fd(), file_.folder_fd(), *compression)
                          : MakePlainOutput(file_.fd())),
      mtime_(std::time(nullptr)) {}

ArchiveWriter::~ArchiveWriter() = default;

Status ArchiveWriter::AddMember(std::string_view name, std::string_view bytes) {
  const std::uint64_t size = bytes.size();
  ASSIGN_OR_RETURN(const auto stream, BeginMember(std::string(name), &size));
  RETURN_IF_ERROR(stream->Write(std::as_bytes(std::span(bytes.data(), bytes.size()))));
  return stream->Finish();
}

Status ArchiveWriter::AddFile(std::string_view name, int fd) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) {
    return SyscallError(errno, "fstat the content of " + std::string(name));
  }
  if (!S_ISREG(st.st_mode)) return InvalidArgument(std::string(name) + ": not a regular file");
  const auto size = static_cast<std::uint64_t>(st.st_size);  // a log may grow while it is read
  ASSIGN_OR_RETURN(const auto stream, BeginMember(std::string(name), &size));
  std::vector<std::byte> piece(std::min<std::uint64_t>(size, kCopyPiece));
  for (std::uint64_t offset = 0; offset < size;) {
    const std::span<std::byte> part =
        std::span(piece).first(std::min<std::uint64_t>(size - offset, piece.size()));
    RETURN_IF_ERROR(Annotate(ReadExactAt(fd, part, offset), name));
    RETURN_IF_ERROR(stream->Write(part));
    offset += part.size();
  }
  return stream->Finish();
}

Result<std::unique_ptr<engine::ImageStream>> ArchiveWriter::OpenMember(std::string_view name) {
  return BeginMember(std::string(name), nullptr);
}

Result<std::unique_ptr<ArchiveWriter::Stream>> ArchiveWriter::BeginMember(
    const std::string& name, const std::uint64_t* size) {
  RETURN_IF_ERROR(CheckMemberName(name));
  if (stream_open_) return FailedPrecondition(name + ": another member is still being written");
  if (!names_.insert(name).second) return AlreadyExists(name + ": written twice");
  const Status headers = WriteHeaders(name, size != nullptr ? *size : 0);
  if (!headers.ok()) {
    broken_ = true;
    return Annotate(headers, name);
  }
  output_->BeginMember();
  stream_open_ = true;
  return std::make_unique<Stream>(*this, name, size);
}

Status ArchiveWriter::WriteHeaders(const std::string& name, std::uint64_t size) {
  std::string records;
  if (name.size() > sizeof(header_.name)) {
    records = PaxRecord("path", name);
  } else if (const std::uint64_t length = HoldsPages(name) ? AlignmentComment(position_) : 0;
             length != 0) {
    records = PaxComment(length);
  }
  if (!records.empty()) {
    const TarHeader pax = MakeTarHeader("pax", kTarPax, records.size(), kMemberMode, mtime_);
    records.resize(RoundUpToBlock(records.size()));
    RETURN_IF_ERROR(Write(std::as_bytes(std::span(&pax, 1))));
    RETURN_IF_ERROR(Write(records));
  }
  header_ = MakeTarHeader(name, kTarRegular, size, kMemberMode, mtime_);
  header_position_ = position_;
  return WriteHeader(header_);
}

Status ArchiveWriter::EndMember(std::uint64_t size, bool size_was_known) {
  static constexpr std::byte kZeros[kTarBlock] = {};
  output_->EndMember();
  RETURN_IF_ERROR(Write(std::span(kZeros).first(RoundUpToBlock(size) - size)));
  if (!size_was_known) {
    SetTarSize(header_, size);
    RETURN_IF_ERROR(PutHeader(header_position_, header_));
  }
  stream_open_ = false;
  return OkStatus();
}

Status ArchiveWriter::PutHeader(std::uint64_t position, const TarHeader& header) {
  const Status put = output_->PutHeader(position, header);
  broken_ = broken_ || !put.ok();
  return put;
}

// Only headers change, which no digest covers.
Status ArchiveWriter::BeginIncrement() {
  if (stream_open_) return FailedPrecondition("an image file is still being written");
  for (const Image& image : image_files_) {
    std::string& name = members_[image.member].name;
    names_.erase(name);
    name.insert(kImagesPrefix.size(), kParentPrefix);
    RETURN_IF_ERROR(CheckMemberName(name));
    if (name.size() > sizeof(TarHeader::name)) return InvalidArgument(name + ": too long");
    RETURN_IF_ERROR(PutHeader(
        image.header_position,
        MakeTarHeader(name, kTarRegular, members_[image.member].size, kMemberMode, mtime_)));
  }
  for (const Image& image : image_files_) names_.insert(members_[image.member].name);
  output_->BeginIncrement();
  return OkStatus();
}

Status ArchiveWriter::Commit(const CheckpointTimes& times, const std::vector<std::string>& notes) {
  if (stream_open_ || broken_) {
    return FailedPrecondition("a member of the archive was not finished: there is nothing to keep");
  }
  Manifest manifest;
  manifest.stasis_version = STASIS_VERSION;
  if (struct utsname host = {}; ::uname(&host) == 0) {
    manifest.host_arch = host.machine;
    manifest.host_kernel = host.release;
  }
  manifest.frozen = times.frozen;
  manifest.total = times.total;
  manifest.notes = notes;
  Result<std::vector<std::string>> digests = output_->Digests();
  RETURN_IF_ERROR(Written(digests.status(), 0));
  manifest.members = members_;
  for (std::size_t at = 0; at < digests->size(); ++at) manifest.members[at].xxh128 = (*digests)[at];

  const std::string json = ManifestToJson(manifest);
  RETURN_IF_ERROR(WriteHeaders(std::string(kManifestName), json.size()));
  RETURN_IF_ERROR(Write(json));
  // pax(1): two blocks of zeros end an archive.
  const std::uint64_t end = RoundUpToBlock(position_) + 2 * kTarBlock;
  RETURN_IF_ERROR(Write(std::string(end - position_, '\0')));
  RETURN_IF_ERROR(Written(output_->Finish(), 0));
  return file_.Publish(wanted_);
}

std::optional<CompressionReport> ArchiveWriter::compression_report() const {
  return compressed_ ? std::optional(output_->report()) : std::nullopt;
}

Status ArchiveWriter::AwaitFilled() { return Written(output_->AwaitFilled(), 0); }

Status ArchiveWriter::Write(std::span<const std::byte> bytes) {
  return Written(output_->Write(bytes), bytes.size());
}

Status ArchiveWriter::WriteHeader(const TarHeader& header) {
  return Written(output_->WriteHeader(header), sizeof(header));
}

Status ArchiveWriter::Written(const Status& status, std::uint64_t bytes) {
  if (!status.ok()) {
    broken_ = true;
    if (ErrnoOf(status) == ENOSPC) {
      return SyscallError(ENOSPC, "write the archive (" + std::to_string(position_ >> 20) +
                                      " MiB so far; free space or choose another folder)");
    }
    return Annotate(status, "the archive");
  }
  position_ += bytes;
  return OkStatus();
}

Status ArchiveWriter::Write(std::string_view text) {
  return Write(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace stasis::archive
