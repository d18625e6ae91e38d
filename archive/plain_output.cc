#include <unistd.h>

#include <cerrno>

#include "archive/tar_output.h"
#include "archive/trailing_hasher.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

class PlainOutput : public TarOutput {
 public:
  explicit PlainOutput(int fd) : fd_(fd), hasher_(fd) {}

  Status Write(std::span<const std::byte> bytes) override {
    RETURN_IF_ERROR(WriteAll(fd_, bytes));
    position_ += bytes.size();
    if (in_member_) hasher_.Extend(bytes.size());
    return OkStatus();
  }

  Status WriteHeader(const TarHeader& header) override {
    return Write(std::as_bytes(std::span(&header, 1)));
  }

  Status PutHeader(std::uint64_t position, const TarHeader& header) override {
    const ssize_t put = ::pwrite(fd_, &header, sizeof(header), static_cast<off_t>(position));
    if (put == static_cast<ssize_t>(sizeof(header))) return OkStatus();
    return SyscallError(put < 0 ? errno : EIO, "pwrite the header");
  }

  void BeginMember() override {
    hasher_.Begin(position_);
    in_member_ = true;
  }
  void EndMember() override {
    hasher_.End();
    in_member_ = false;
  }
  Result<std::vector<std::string>> Digests() override { return hasher_.Finish(); }

  Status Finish() override { return OkStatus(); }
  std::uint64_t file_bytes() const override { return position_; }

 private:
  const int fd_;
  TrailingHasher hasher_;
  std::uint64_t position_ = 0;
  bool in_member_ = false;
};

}  // namespace

std::unique_ptr<TarOutput> MakePlainOutput(int fd) { return std::make_unique<PlainOutput>(fd); }

}  // namespace stasis::archive
