#include "cri/checkpoint/free_space.h"

#include <sys/statvfs.h>

#include <cerrno>
#include <span>

namespace stasis::cri {
namespace {

constexpr std::uint64_t kUncheckedBytes = std::uint64_t{8} << 20;

class Stream : public engine::ImageStream {
 public:
  Stream(std::unique_ptr<engine::ImageStream> stream, FreeSpace& space)
      : stream_(std::move(stream)), space_(space) {}
  Status Write(std::span<const std::byte> bytes) override {
    RETURN_IF_ERROR(space_.Wrote(bytes.size()));
    return stream_->Write(bytes);
  }
  Status Fill(std::uint64_t size, const engine::ReadPiece& read,
              const engine::PassedOn& passed_on) override {
    return stream_->Fill(size, read, space_.Counting(passed_on));
  }
  Status Finish() override { return stream_->Finish(); }

 private:
  std::unique_ptr<engine::ImageStream> stream_;
  FreeSpace& space_;
};

}  // namespace

Status FreeSpace::Check() const {
  struct statvfs disk = {};
  // What is wrong with the folder, whoever writes there says.
  if (least_percent_ == 0 || ::statvfs(folder_.c_str(), &disk) != 0 || disk.f_blocks == 0) {
    return OkStatus();
  }
  const auto percent = static_cast<std::uint64_t>(least_percent_);
  if (disk.f_bavail >= disk.f_blocks / 100 * percent) return OkStatus();
  return SyscallError(ENOSPC, "the disk of " + folder_ + " has less than " +
                                  std::to_string(least_percent_) +
                                  " % free, which checkpoints leave (--checkpoint-min-free); "
                                  "delete old checkpoints, or other files");
}

Status FreeSpace::Wrote(std::uint64_t bytes) {
  unchecked_ += bytes;
  if (unchecked_ < kUncheckedBytes) return OkStatus();
  unchecked_ = 0;
  if (part_ != nullptr) RETURN_IF_ERROR(part_->Takes(bytes_()));
  return Check();
}

engine::PassedOn FreeSpace::Counting(const engine::PassedOn& passed_on) {
  return [this, &passed_on](std::uint64_t bytes) -> Status {
    RETURN_IF_ERROR(Wrote(bytes));
    return passed_on(bytes);
  };
}

Status SpaceKeepingSink::Fill(std::span<const engine::ImageContent> files,
                              const engine::PassedOn& passed_on) {
  return sink_.Fill(files, space_.Counting(passed_on));
}

Result<std::unique_ptr<engine::ImageStream>> SpaceKeepingSink::Open(std::string_view name,
                                                                    std::uint64_t size_bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<engine::ImageStream> stream, sink_.Open(name, size_bytes));
  return std::make_unique<Stream>(std::move(stream), space_);
}

}  // namespace stasis::cri
