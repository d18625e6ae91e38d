// Limits of gRPC that a proxy must not add to those of its two ends.
#pragma once

namespace stasis::cri {

inline constexpr int kUnlimitedMessage = -1;
// gRPC's default of 8 KiB would cut the long error texts of a runtime: they travel as a trailer,
// and Go, in which runtimes and clients are written, takes 16 MiB.
inline constexpr int kMaxMetadataBytes = 16 << 20;

}  // namespace stasis::cri
