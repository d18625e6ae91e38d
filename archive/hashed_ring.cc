#include "archive/hashed_ring.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "archive/member_digest.h"

namespace stasis::archive {

HashedRing::HashedRing(Shape shape, const std::function<Work()>& make_worker, Work done)
    : done_(std::move(done)), slots_(shape.buffers) {
  for (unsigned i = 0; i < shape.workers; ++i) {
    threads_.emplace_back([this, make_worker] { RunWorker(make_worker); });
  }
  threads_.emplace_back([this] { Hash(); });
}

HashedRing::~HashedRing() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
}

Status HashedRing::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    RETURN_IF_ERROR(Begin());
    const std::span<std::byte> room = Extend(bytes.size());
    std::memcpy(room.data(), bytes.data(), room.size());
    bytes = bytes.subspan(room.size());
    if (bytes_ % kBytes == 0) RETURN_IF_ERROR(Submit());
  }
  return OkStatus();
}

Status HashedRing::Fill(std::uint64_t size, const engine::ReadPiece& read,
                        const engine::PassedOn& passed_on) {
  Status status;
  for (std::uint64_t offset = 0; status.ok() && offset < size;) {
    status = Begin();
    if (!status.ok()) break;
    const std::span<std::byte> room = Extend(size - offset);
    current_->gaps.push_back({.read = &read, .offset = offset, .target = room});
    offset += room.size();
    if (bytes_ % kBytes == 0) status = Submit();
    if (status.ok()) status = passed_on(room.size());
  }
  return status;
}

std::span<std::byte> HashedRing::Extend(std::uint64_t most_bytes) {
  std::span<std::byte>& content = current_->buffer.content;
  const std::size_t size = std::min<std::uint64_t>(most_bytes, kBytes - bytes_ % kBytes);
  if (in_member_) LatestPiece().end += size;
  content = {content.data(), content.size() + size};
  bytes_ += size;
  return content.last(size);
}

Status HashedRing::FillGaps(Slot& slot) {
  for (const Gap& gap : std::exchange(slot.gaps, {})) {
    RETURN_IF_ERROR((*gap.read)(gap.offset, gap.target));
  }
  return OkStatus();
}

Status HashedRing::AwaitFilled() {
  const Status status = current_ != nullptr ? FillGaps(*current_) : OkStatus();
  std::unique_lock lock(mutex_);
  for (std::uint64_t number = taken_back_; number < submitted_; ++number) {
    ready_.wait(lock, [&] { return At(number).filled; });
  }
  return status;
}

Status HashedRing::SetKind(int kind) {
  if (std::exchange(kind_, kind) == kind) return OkStatus();
  return Submit();
}

Status HashedRing::Flush() {
  RETURN_IF_ERROR(Submit());
  while (taken_back_ < submitted_) RETURN_IF_ERROR(TakeBack());
  return OkStatus();
}

void HashedRing::EndMember() {
  if (Begin().ok()) LatestPiece().last = true;  // else the next call says what is wrong
  in_member_ = false;
}

Result<std::vector<std::string>> HashedRing::Digests() {
  RETURN_IF_ERROR(Flush());
  const std::lock_guard lock(mutex_);
  return digests_;
}

Status HashedRing::Begin() {
  if (current_ != nullptr) return OkStatus();
  while (submitted_ - taken_back_ == slots_.size()) RETURN_IF_ERROR(TakeBack());
  Slot& slot = At(submitted_);
  if (!slot.memory) {
    slot.memory.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, kBytes)));
    if (!slot.memory) return ResourceExhausted("no memory for a buffer of the archive");
  }
  slot.buffer = {.slot = submitted_ % slots_.size(),
                 .kind = kind_,
                 .offset = bytes_,
                 .content = {slot.memory.get() + bytes_ % kBytes, 0}};
  slot.pieces.clear();
  slot.filled = slot.worked = slot.hashed = false;
  current_ = &slot;
  return OkStatus();
}

Status HashedRing::Submit() {
  if (current_ == nullptr) return OkStatus();
  {
    const std::lock_guard lock(mutex_);
    ++submitted_;
  }
  current_ = nullptr;
  work_.notify_all();
  while (OldestIsReady()) RETURN_IF_ERROR(TakeBack());
  return OkStatus();
}

bool HashedRing::OldestIsReady() const {
  const std::lock_guard lock(mutex_);
  const Slot& slot = slots_[taken_back_ % slots_.size()];
  return taken_back_ < submitted_ && slot.worked && slot.hashed;
}

Status HashedRing::TakeBack() {
  Slot& slot = At(taken_back_);
  {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return slot.worked && slot.hashed; });
  }
  RETURN_IF_ERROR(slot.status);
  slot.status = done_(slot.buffer);
  RETURN_IF_ERROR(slot.status);
  done_bytes_ = slot.buffer.offset + slot.buffer.content.size();
  ++taken_back_;
  return OkStatus();
}

HashedRing::Piece& HashedRing::LatestPiece() {
  std::vector<Piece>& pieces = current_->pieces;
  const std::size_t here = current_->buffer.content.size();
  if (pieces.empty() || pieces.back().last) {
    pieces.push_back({.begin = here, .end = here, .last = false});
  }
  return pieces.back();
}

void HashedRing::RunWorker(const std::function<Work()>& make_worker) {
  const Work work = make_worker();
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || taken_ < submitted_; });
    if (stop_) return;
    Slot& slot = At(taken_++);
    lock.unlock();
    slot.status = FillGaps(slot);
    lock.lock();
    slot.filled = true;
    ready_.notify_one();
    work_.notify_all();  // the hasher
    lock.unlock();
    if (slot.status.ok()) slot.status = work(slot.buffer);
    lock.lock();
    slot.worked = true;
    ready_.notify_one();
  }
}

void HashedRing::Hash() {
  MemberDigest hash;
  std::unique_lock lock(mutex_);
  for (std::uint64_t number = 0;; ++number) {
    work_.wait(lock, [&] { return stop_ || (number < submitted_ && At(number).filled); });
    if (stop_) return;
    Slot& slot = At(number);
    lock.unlock();
    std::vector<std::string> ended;
    for (const Piece& piece : slot.pieces) {
      hash.Update(slot.buffer.content.subspan(piece.begin, piece.end - piece.begin));
      if (piece.last) ended.push_back(hash.Finish());
    }
    lock.lock();
    std::ranges::move(ended, std::back_inserter(digests_));
    slot.hashed = true;
    ready_.notify_one();
  }
}

}  // namespace stasis::archive
