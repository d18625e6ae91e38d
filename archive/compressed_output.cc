// A container that stands still must not wait for zstd: what is written meanwhile goes to a file
// without a name first, and from there through zstd when the container runs again.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "archive/frame_writer.h"
#include "archive/tar_output.h"
#include "archive/write_at.h"
#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {
namespace {

static_assert(sizeof(TarHeader) == FrameWriter::kRawBytes);

std::span<const std::byte, sizeof(TarHeader)> BytesOf(const TarHeader& header) {
  return std::as_bytes(std::span<const TarHeader, 1>(&header, 1));
}

class CompressedOutput : public TarOutput {
 public:
  CompressedOutput(int fd, int folder_fd, const Compression& compression)
      : folder_fd_(folder_fd), frames_(fd, compression.level) {}

  Status Write(std::span<const std::byte> bytes) override {
    if (hurried_ && Spool(Step::kBytes, bytes)) return OkStatus();
    RETURN_IF_ERROR(Drain());
    return frames_.Write(bytes);
  }

  Status Fill(std::uint64_t size, const engine::ReadPiece& read,
              const engine::PassedOn& passed_on) override {
    if (hurried_) {
      const auto write = [this](std::span<const std::byte> bytes) { return Write(bytes); };
      return engine::FillInOrder(size, read, write, passed_on);
    }
    RETURN_IF_ERROR(Drain());
    return frames_.Fill(size, read, passed_on);
  }
  Status AwaitFilled() override { return frames_.AwaitFilled(); }

  Status WriteHeader(const TarHeader& header) override {
    if (hurried_ && Spool(Step::kHeader, BytesOf(header))) return OkStatus();
    RETURN_IF_ERROR(Drain());
    return frames_.WriteRaw(BytesOf(header));
  }

  Status PutHeader(std::uint64_t position, const TarHeader& header) override {
    if (position < frames_.plain_bytes()) return frames_.Rewrite(position, BytesOf(header));
    return WriteAllAt(spool_.get(), BytesOf(header), position - frames_.plain_bytes());
  }

  void BeginMember() override { Mark(Step::kBegin); }
  void EndMember() override { Mark(Step::kEnd); }

  Result<std::vector<std::string>> Digests() override {
    RETURN_IF_ERROR(Drain());
    return frames_.Digests();
  }

  Status Finish() override {
    RETURN_IF_ERROR(Drain());
    return frames_.Finish();
  }
  std::uint64_t file_bytes() const override { return frames_.stored_bytes(); }
  std::uint64_t disk_bytes() const override { return file_bytes() + spooled_; }
  void Hurry(bool hurried) override { hurried_ = hurried; }
  void StopUnless(const std::function<Status()>& wanted) override { wanted_ = wanted; }
  CompressionReport report() const override {
    return {.plain_bytes = frames_.plain_bytes(),
            .stored_bytes = frames_.stored_bytes(),
            .cpu = frames_.cpu()};
  }

 private:
  struct Step {
    enum Kind { kBytes, kHeader, kBegin, kEnd } kind;
    std::uint64_t size;
  };

  // False: there is no room for it, and it has to wait for zstd after all.
  bool Spool(Step::Kind kind, std::span<const std::byte> bytes) {
    if (!spool_) {
      spool_.Reset(::openat(folder_fd_, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
      if (!spool_) return false;
    }
    if (!WriteAll(spool_.get(), bytes).ok()) {
      (void)::lseek(spool_.get(), static_cast<off_t>(spooled_), SEEK_SET);
      return false;
    }
    spooled_ += bytes.size();
    if (kind == Step::kBytes && !steps_.empty() && steps_.back().kind == kind) {
      steps_.back().size += bytes.size();
    } else {
      steps_.push_back({kind, bytes.size()});
    }
    return true;
  }

  void Mark(Step::Kind kind) {
    if (!steps_.empty()) {
      steps_.push_back({kind, 0});
    } else {
      kind == Step::kBegin ? frames_.BeginMember() : frames_.EndMember();
    }
  }

  Status Drain() {
    if (steps_.empty()) return OkStatus();
    std::uint64_t offset = 0;
    for (const Step& step : std::exchange(steps_, {})) {
      switch (step.kind) {
        case Step::kBytes:
          RETURN_IF_ERROR(DrainBytes(offset, step.size));
          break;
        case Step::kHeader: {
          TarHeader header;
          RETURN_IF_ERROR(
              ReadExactAt(spool_.get(), std::as_writable_bytes(std::span(&header, 1)), offset));
          RETURN_IF_ERROR(frames_.WriteRaw(BytesOf(header)));
          break;
        }
        case Step::kBegin:
          frames_.BeginMember();
          break;
        case Step::kEnd:
          frames_.EndMember();
          break;
      }
      offset += step.size;
    }
    spooled_ = 0;
    spool_.Reset();
    return OkStatus();
  }

  Status DrainBytes(std::uint64_t offset, std::uint64_t size) {
    constexpr std::uint64_t kPiece = std::uint64_t{256} << 10;
    const auto piece = std::make_unique_for_overwrite<std::byte[]>(std::min(size, kPiece));
    for (const std::uint64_t end = offset + size; offset < end;) {
      if (wanted_) RETURN_IF_ERROR(wanted_());
      const std::span part(piece.get(), std::min(end - offset, kPiece));
      RETURN_IF_ERROR(ReadExactAt(spool_.get(), part, offset));
      RETURN_IF_ERROR(frames_.Write(part));
      offset += part.size();
      // Its room on the disk is given back as it goes; without that (NFS) at the end.
      (void)::fallocate(spool_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(offset - part.size()), static_cast<off_t>(part.size()));
    }
    return OkStatus();
  }

  const int folder_fd_;
  bool hurried_ = false;
  UniqueFd spool_;             // the tar from plain_bytes() of frames_ on
  std::uint64_t spooled_ = 0;  // bytes in it
  std::vector<Step> steps_;    // what it has, in order
  std::function<Status()> wanted_;
  FrameWriter frames_;
};

}  // namespace

std::unique_ptr<TarOutput> MakeCompressedOutput(int fd, int folder_fd,
                                                const Compression& compression) {
  return std::make_unique<CompressedOutput>(fd, folder_fd, compression);
}

}  // namespace stasis::archive
