#include "engine/base/packed_bytes.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace stasis::engine {
namespace {

constexpr std::size_t kWordBytes = sizeof(std::uint64_t);
constexpr std::size_t kMostWords = 0xffff;  // of a run

struct Run {
  std::uint16_t zeros = 0, words = 0;  // words of zeros, then others
};

bool IsZero(std::span<const std::byte> bytes, std::size_t word) {
  const std::span<const std::byte> rest = bytes.subspan(word * kWordBytes);
  std::uint64_t value = 0;
  std::memcpy(&value, rest.data(), std::min(rest.size(), kWordBytes));
  return value == 0;
}

}  // namespace

PackedBytes::PackedBytes(std::span<const std::byte> bytes) : size_(bytes.size()) {
  const std::size_t words = (bytes.size() + kWordBytes - 1) / kWordBytes;
  // First how much it is: each of thousands has the room that it needs.
  const auto walk = [&](const auto& take) {
    for (std::size_t at = 0; at < words;) {
      const std::size_t begin = at;
      while (at < words && at - begin < kMostWords && IsZero(bytes, at)) ++at;
      const std::size_t first = at;
      while (at < words && at - first < kMostWords && !IsZero(bytes, at)) ++at;
      const std::span<const std::byte> rest = bytes.subspan(std::min(first * kWordBytes, size_));
      take(Run{static_cast<std::uint16_t>(first - begin), static_cast<std::uint16_t>(at - first)},
           rest.first(std::min(rest.size(), (at - first) * kWordBytes)));
    }
  };
  std::size_t room = 0;
  walk([&](const Run&, std::span<const std::byte> some) { room += sizeof(Run) + some.size(); });
  runs_.reserve(room);
  walk([&](const Run& run, std::span<const std::byte> some) {
    const auto head = std::as_bytes(std::span(&run, 1));
    runs_.insert(runs_.end(), head.begin(), head.end());
    runs_.insert(runs_.end(), some.begin(), some.end());
  });
}

std::vector<std::byte> PackedBytes::Unpack() const {
  std::vector<std::byte> bytes(size_);
  std::span<const std::byte> rest = runs_;
  std::span<std::byte> room = bytes;
  while (!rest.empty()) {
    Run run;
    std::memcpy(&run, rest.data(), sizeof(run));
    rest = rest.subspan(sizeof(run));
    room = room.subspan(std::min(run.zeros * kWordBytes, room.size()));
    const std::size_t some = std::min({run.words * kWordBytes, rest.size(), room.size()});
    std::ranges::copy(rest.first(some), room.begin());
    rest = rest.subspan(some);
    room = room.subspan(some);
  }
  return bytes;
}

}  // namespace stasis::engine
