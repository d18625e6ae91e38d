// Where each member of a tar file lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>

#include "engine/base/status.h"

namespace stasis::archive {

struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
};

struct TarIndex {
  std::unordered_map<std::string, Extent> files;  ///< Regular members by name.
  std::uint64_t end = 0;                          ///< Offset behind the end mark.
};

/// Fills all of `bytes` from `offset` of a tar.
using ReadTarCall = std::function<Status(std::span<std::byte> bytes, std::uint64_t offset)>;

/// Reads all headers of the tar behind `read`, of `size` bytes. InvalidArgument: no tar, or a member that
/// a checkpoint does not have. DataLoss: cut short or altered. ResourceExhausted: over
/// `max_members`.
Result<TarIndex> ReadTarIndex(const ReadTarCall& read, std::uint64_t size,
                              std::uint64_t max_members);

}  // namespace stasis::archive
