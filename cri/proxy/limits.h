// Limits of gRPC that a proxy must not add to those of its two ends.
#pragma once

#include <cstddef>

namespace stasis::cri {

inline constexpr int kUnlimitedMessage = -1;
// gRPC's default of 8 KiB would cut the long error texts of a runtime: they travel as a trailer,
// and Go, in which runtimes and clients are written, takes 16 MiB. Of all fields together: nghttp2 takes 64 KiB for one
// (NGHTTP2_HD_MAX_NV), and ends the connection over a longer one.
inline constexpr int kMaxMetadataBytes = 16 << 20;
// Of a status that we make: percent-encoded, as it travels, it is three times as long at most.
inline constexpr std::size_t kMaxStatusBytes = std::size_t{16} << 10;

}  // namespace stasis::cri
