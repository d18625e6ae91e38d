// Messages of rtnetlink(7): devices, addresses and routes of a network namespace.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/read_as.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {

template <typename T>
void Append(std::string& text, const T& value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

struct Attribute {
  std::uint16_t type = 0;  ///< Without the flags that may be in it (NLA_TYPE_MASK).
  std::string bytes;
};
using Attributes = std::vector<Attribute>;

/// Those at the start of `bytes`; what is no attribute ends them.
Attributes ParseAttributes(std::string_view bytes);
/// With padding after each, as they are in a message.
std::string ToBytes(const Attributes& attributes);
/// The first of `type`, or null.
const std::string* Find(const Attributes& attributes, std::uint16_t type);
/// The value of that attribute, a number of this size or larger; 0 without one.
std::uint32_t NumberOf(const Attributes& attributes, std::uint16_t type);
template <typename T>
void Add(Attributes& attributes, std::uint16_t type, const T& value) {
  attributes.push_back({type, std::string(reinterpret_cast<const char*>(&value), sizeof(value))});
}

/// A socket in a network namespace, whichever thread uses it.
class RouteSocket {
 public:
  /// In that of the calling thread.
  static Result<RouteSocket> Open();
  /// In the one that `ns_fd` has open.
  static Result<RouteSocket> OpenIn(int ns_fd);

  /// All answers to a request of type `asked` for `body` (NLM_F_DUMP): whole messages with their headers.
  Result<std::vector<std::string>> Dump(std::uint16_t asked, std::string_view body) const;
  /// Sends one request, and gives what the kernel says to it. `message` has a header already, whose type and flags
  /// are set here; NLM_F_REQUEST and NLM_F_ACK are added.
  Status Send(std::string message, std::uint16_t type, int flags) const;
  /// The same of a message made of `body` and `attributes`.
  Status Send(std::string_view body, const Attributes& attributes, std::uint16_t type,
              int flags) const;
  /// The one message that answers such a request.
  Result<std::string> Ask(std::string_view body, const Attributes& attributes,
                          std::uint16_t type) const;

 private:
  explicit RouteSocket(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

/// A whole message, aligned.
std::string MakeMessage(std::uint16_t type, std::string_view body, const Attributes& attributes);

}  // namespace stasis::engine
