#include "archive/trailing_hasher.h"

#include <fcntl.h>

#include <algorithm>
#include <cstddef>
#include <span>

#include "archive/sha256.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;

}  // namespace

TrailingHasher::TrailingHasher(int fd) : fd_(fd), thread_([this] { Run(); }) {}

TrailingHasher::~TrailingHasher() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    abandoned_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void TrailingHasher::Begin(std::uint64_t offset) {
  const std::lock_guard lock(mutex_);
  members_.push_back({.begin = offset, .end = offset});
}

void TrailingHasher::Extend(std::uint64_t length) {
  {
    const std::lock_guard lock(mutex_);
    members_.back().end += length;
  }
  changed_.notify_one();
}

void TrailingHasher::End() {
  {
    const std::lock_guard lock(mutex_);
    members_.back().whole = true;
  }
  changed_.notify_one();
}

Result<std::vector<std::string>> TrailingHasher::Finish() {
  {
    const std::lock_guard lock(mutex_);
    no_more_ = true;
  }
  changed_.notify_one();
  thread_.join();
  RETURN_IF_ERROR(status_);
  return std::move(digests_);
}

void TrailingHasher::Run() {
  for (std::size_t index = 0;; ++index) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return abandoned_ || no_more_ || index < members_.size(); });
      if (abandoned_ || index == members_.size()) return;
    }
    status_ = HashMember(index, digests_.emplace_back());
    if (!status_.ok()) return;
  }
}

Status TrailingHasher::HashMember(std::size_t index, std::string& digest) {
  Sha256 hash;
  std::vector<std::byte> piece(kPiece);
  for (std::uint64_t done = 0;;) {
    std::uint64_t begin = 0;
    std::uint64_t ready = 0;
    {
      std::unique_lock lock(mutex_);
      const Member& member = members_[index];
      // Whole pieces while the member grows, so that the writer is not disturbed for every little
      // one.
      changed_.wait(lock, [&] {
        return abandoned_ || member.whole || member.end - member.begin - done >= kPiece;
      });
      if (abandoned_) return Cancelled("the archive was given up");
      begin = member.begin;
      ready = member.end - member.begin;
    }
    if (done == ready) break;
    const std::span<std::byte> part =
        std::span(piece).first(std::min<std::uint64_t>(ready - done, kPiece));
    RETURN_IF_ERROR(ReadExactAt(fd_, part, begin + done));
    hash.Update(part);
    // The disk gets to work now, so that the fsync at the end has little left to wait for.
    ::sync_file_range(fd_, static_cast<off_t>(begin + done), static_cast<off_t>(part.size()),
                      SYNC_FILE_RANGE_WRITE);
    done += part.size();
  }
  digest = hash.Finish();
  return OkStatus();
}

}  // namespace stasis::archive
