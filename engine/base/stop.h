// A stop that is one for somebody else, too.
#pragma once

#include <stop_token>

namespace stasis {

/// For a std::stop_callback: requests a stop of `source`, which it keeps.
struct PassStop {
  std::stop_source source;
  void operator()() { source.request_stop(); }
};

}  // namespace stasis
