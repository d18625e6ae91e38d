#include "engine/held_sink.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace stasis::engine {
namespace {

constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20;

}  // namespace

// In huge pages where there are any: to be given 30 MiB in small ones takes as long as to fill them.
HeldSink::HeldSink(ImageSink& sink) : sink_(sink) {
  void* const memory = ::mmap(nullptr, kMostBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;  // all files go through
  ::madvise(memory, kMostBytes, MADV_HUGEPAGE);
  arena_ = static_cast<std::byte*>(memory);
}

void HeldSink::Prepare(std::uint64_t bytes, std::size_t files) {
  if (bytes > kMostBytes) sink_.Prepare(files);
  if (arena_ == nullptr) return;
  limit_ = bytes > kFarMore ? kBytesOfMany : kMostBytes;
  const std::uint64_t wanted = (std::min(bytes, limit_) + kHugePage - 1) & ~(kHugePage - 1);
  ::madvise(arena_, std::min(wanted, kMostBytes),
            MADV_POPULATE_WRITE);  // Linux 5.14; else they come as they are written
}

HeldSink::~HeldSink() {
  if (arena_ != nullptr) ::munmap(arena_, kMostBytes);
}

class HeldSink::Stream : public ImageStream {
 public:
  Stream(std::string_view name, std::span<std::byte> room) : name_(name), rest_(room) {}

  Status Write(std::span<const std::byte> bytes) override {
    if (bytes.size() > rest_.size()) return NotAsAnnounced();
    std::ranges::copy(bytes, rest_.begin());
    rest_ = rest_.subspan(bytes.size());
    return OkStatus();
  }
  Status Finish() override { return rest_.empty() ? OkStatus() : NotAsAnnounced(); }

 private:
  Status NotAsAnnounced() const {
    return FailedPrecondition(name_ + ": not as many bytes as announced");
  }

  const std::string name_;
  std::span<std::byte> rest_;
};

std::optional<std::span<std::byte>> HeldSink::Hold(std::string_view name,
                                                   std::uint64_t size_bytes) {
  if (arena_ == nullptr || size_bytes > limit_ - held_bytes_) return std::nullopt;
  const std::span<std::byte> room = {arena_ + held_bytes_, size_bytes};
  files_.push_back({.name = std::string(name), .bytes = room});
  held_bytes_ += size_bytes;
  return room;
}

Result<std::unique_ptr<ImageStream>> HeldSink::Open(std::string_view name,
                                                    std::uint64_t size_bytes) {
  const auto room = Hold(name, size_bytes);
  if (!room) return sink_.Open(name, size_bytes);
  return std::make_unique<Stream>(name, *room);
}

Status HeldSink::BeginIncrement() {
  if (!files_.empty()) return FailedPrecondition("image files are still held in memory");
  return sink_.BeginIncrement();
}

Status HeldSink::PassOn() {
  std::uint64_t given_back = 0;  // of the arena, in which the files lie in their order
  for (; !files_.empty(); files_.pop_front()) {
    const File& file = files_.front();
    ASSIGN_OR_RETURN(const auto stream, sink_.Open(file.name, file.bytes.size()));
    for (std::span<std::byte> rest = file.bytes; !rest.empty();) {
      const std::span<std::byte> piece = rest.first(std::min<std::size_t>(rest.size(), kHugePage));
      RETURN_IF_ERROR(stream->Write(piece));
      rest = rest.subspan(piece.size());
      const auto passed = static_cast<std::uint64_t>(piece.data() + piece.size() - arena_);
      if (passed - given_back < kHugePage) continue;
      const std::uint64_t whole = (passed & ~(kHugePage - 1)) - given_back;
      ::madvise(arena_ + given_back, whole, MADV_DONTNEED);
      given_back += whole;
    }
    RETURN_IF_ERROR(stream->Finish());
  }
  held_bytes_ = 0;
  if (arena_ != nullptr) ::madvise(arena_, kMostBytes, MADV_DONTNEED);
  return OkStatus();
}

}  // namespace stasis::engine
