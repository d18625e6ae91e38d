// What gRPC puts into HTTP/2 (gRPC doc/PROTOCOL-HTTP2.md), as far as a proxy must know it.
#pragma once

#include <string>
#include <string_view>

#include "cri/proxy/http2.h"
#include "cri/proxy/method_table.h"

namespace stasis::cri {

/// The value of `name`; empty when it is not there.
std::string_view Find(const Headers& headers, std::string_view name);

/// What ends a call whose response headers are sent with UNAVAILABLE: ask again.
Headers UnavailableTrailers(std::string_view message);
/// The same as a whole response.
Headers UnavailableResponse(std::string_view message);

/// Shows a filter the messages of one direction of one call.
class MessageChanger {
 public:
  /// `filter` outlives it.
  explicit MessageChanger(const MessageFilter& filter) : filter_(filter) {}

  /// Takes the next bytes of the stream; gives what of them, and of those before, is to be sent on: whole
  /// messages. Compressed ones are passed on unseen.
  std::string Change(std::string_view bytes);
  /// A message that was not ended, as it came.
  std::string Rest() { return std::move(bytes_); }

 private:
  const MessageFilter& filter_;
  std::string bytes_;
};

}  // namespace stasis::cri
