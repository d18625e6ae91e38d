#include "cri/proxy/grpc_wire.h"

#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace stasis::cri {
namespace {

constexpr std::size_t kPrefixBytes = 5;  // a flag (1: compressed), and the length in network order

std::string Prefix(std::size_t length) {
  std::string prefix(1, '\0');
  for (int shift = 24; shift >= 0; shift -= 8) prefix += static_cast<char>(length >> shift);
  return prefix;
}

std::size_t LengthIn(std::string_view prefix) {
  std::size_t length = 0;
  for (std::size_t at = 1; at < kPrefixBytes; ++at) {
    length = (length << 8) | static_cast<std::uint8_t>(prefix[at]);
  }
  return length;
}

// All but printable ASCII, and '%', is written as %XX.
std::string PercentEncoded(std::string_view text) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::string encoded;
  for (const char letter : text) {
    const auto byte = static_cast<std::uint8_t>(letter);
    if (byte >= 0x20 && byte <= 0x7e && letter != '%') {
      encoded += letter;
    } else {
      encoded += {'%', kDigits[byte >> 4], kDigits[byte & 0xf]};
    }
  }
  return encoded;
}

void Append(const grpc::ByteBuffer& message, std::string& to) {
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return;
  to += Prefix(message.Length());
  for (const grpc::Slice& slice : slices) {
    to.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
}

}  // namespace

std::string_view Find(const Headers& headers, std::string_view name) {
  const auto found = std::ranges::find(headers, name, &HeaderField::name);
  return found == headers.end() ? std::string_view() : found->value;
}

Headers UnavailableTrailers(std::string_view message) {
  constexpr const char* kUnavailable = "14";  // grpc::StatusCode::UNAVAILABLE
  return {{"grpc-status", kUnavailable}, {"grpc-message", PercentEncoded(message)}};
}

Headers UnavailableResponse(std::string_view message) {
  Headers headers = {{":status", "200"}, {"content-type", "application/grpc"}};
  std::ranges::move(UnavailableTrailers(message), std::back_inserter(headers));
  return headers;
}

std::string MessageChanger::Change(std::string_view bytes) {
  bytes_ += bytes;
  std::string changed;
  std::size_t at = 0;
  while (bytes_.size() - at >= kPrefixBytes) {
    const std::size_t length = LengthIn(std::string_view(bytes_).substr(at));
    if (bytes_.size() - at - kPrefixBytes < length) break;
    const std::string_view whole(bytes_.data() + at, kPrefixBytes + length);
    if (whole.front() == '\0') {
      const grpc::Slice slice(whole.data() + kPrefixBytes, length);
      grpc::ByteBuffer message(&slice, 1);
      filter_(message);
      Append(message, changed);
    } else {
      changed += whole;
    }
    at += whole.size();
  }
  bytes_.erase(0, at);
  return changed;
}

}  // namespace stasis::cri
