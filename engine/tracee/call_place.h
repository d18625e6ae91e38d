// Memory of a process that is ours for a while.
#pragma once

#include <cstdint>

namespace stasis::engine {

/// Where calls run in a process: HomewardCode, room for the signal frame that leads the thread home, and for
/// arguments.
struct CallPlace {
  std::uint64_t code = 0;
  std::uint64_t frame = 0, frame_bytes = 0;
  std::uint64_t arguments = 0, argument_bytes = 0;
};

}  // namespace stasis::engine
