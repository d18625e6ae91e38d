// The size of a page, which all of memory's files count in.
#pragma once

#include <cstdint>

namespace stasis::engine {

inline constexpr std::uint64_t kPageBytes = 4096;

}  // namespace stasis::engine
