// What dumping and restoring rings of io_uring share.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <utility>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"
#include "engine/image/schema/io_uring.pb.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/proc/maps.h"

namespace stasis::engine {

inline constexpr std::string_view kRingImage = "stasis-io-uring";

/// How long it takes, about, to bring a new ring of so many entries to position `taken`: what was measured, of requests
/// and of calls.
inline constexpr std::chrono::nanoseconds TimeToReach(std::uint32_t taken, std::uint32_t entries) {
  constexpr std::uint64_t kOfRequest = 200, kOfCall = 4000;
  return std::chrono::nanoseconds(taken * kOfRequest +
                                  taken / std::clamp(entries, 1u, 1024u) * kOfCall);
}
inline constexpr std::chrono::seconds kMostTime{10};

/// True for a dump that met a ring with something under way, which may end when the tree runs.
bool IsBusyRing(const Status& status);

/// The memory of a ring or of its submission entries, mapped into ours.
class RingMemory {
 public:
  /// `place`: IORING_OFF_SQ_RING or IORING_OFF_SQES.
  static Result<RingMemory> Map(int fd, std::uint64_t place, std::size_t size);
  RingMemory(RingMemory&& other) noexcept;
  RingMemory& operator=(RingMemory&&) = delete;
  ~RingMemory();
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  explicit RingMemory(std::span<std::byte> bytes) : bytes_(bytes) {}
  std::span<std::byte> bytes_;
};

/// Finds rings by the page frames that are mapped.
class RingFrames {
 public:
  /// The one among `files`, the same at each call, that `vma` of process `pid` maps. Unimplemented: a part of one, or
  /// none of them.
  Result<const OpenFile*> RingOf(std::span<const OpenFile> files, pid_t pid, const Vma& vma);

 private:
  using Shape = std::pair<std::uint64_t, std::uint64_t>;             // offset and size of a mapping
  std::map<Shape, std::map<std::uint64_t, const OpenFile*>> known_;  // by the first frame
};

}  // namespace stasis::engine
