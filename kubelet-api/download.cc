// Source  RFC 9110, section 14 (ranges), 13.1.5 (If-Range)
#include <algorithm>
#include <charconv>
#include <optional>

#include "kubelet-api/answers.h"
#include "kubelet-api/routes.h"
#include "kubelet-api/transport/exchange.h"

namespace stasis::kubelet_api {
namespace {

struct Range {
  std::uint64_t first = 0;
  std::uint64_t size = 0;
};

std::optional<std::uint64_t> Digits(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// The bytes that "bytes=…" asks for; all where it is none, or several (a server may ignore it); of size 0 when
// none of them is there.
Range Parse(std::string_view header, std::uint64_t size) {
  constexpr std::string_view kUnit = "bytes=";
  const Range all = {0, size};
  const std::size_t dash = header.find('-');
  if (!header.starts_with(kUnit) || dash == std::string_view::npos) return all;
  const std::string_view first_text = header.substr(kUnit.size(), dash - kUnit.size());
  const std::string_view last_text = header.substr(dash + 1);
  const auto first = Digits(first_text);
  const auto last = Digits(last_text);
  if (first_text.empty() && last) {
    const std::uint64_t count = std::min(*last, size);
    return {size - count, count};
  }
  if (!first || (!last && !last_text.empty()) || (last && *last < *first)) return all;
  if (*first >= size) return {size, 0};
  const std::uint64_t end = last ? std::min(*last, size - 1) : size - 1;
  return {*first, end - *first + 1};
}

}  // namespace

Answer Download(const Call& call, StoredCheckpoint checkpoint) {
  const auto header = [&](const char* name) {
    const auto found = call.request.headers().find(name);
    return found == call.request.headers().end() ? std::string() : found->second;
  };
  const std::string tag = "\"" + checkpoint.tag + "\"";
  const std::string wanted = header("Range");
  const std::string only_of = header("If-Range");
  const bool in_part = !wanted.empty() && (only_of.empty() || only_of == tag);
  const Range range = in_part ? Parse(wanted, checkpoint.size) : Range{0, checkpoint.size};
  const std::string size = std::to_string(checkpoint.size);

  web::http::http_response answer(web::http::status_codes::OK);
  answer.headers().add("ETag", tag);
  answer.headers().add("Accept-Ranges", "bytes");
  answer.headers().add("Content-Type", "application/x-tar");
  if (range.size == 0) {
    answer.set_status_code(web::http::status_codes::RangeNotSatisfiable);
    answer.headers().add("Content-Range", "bytes */" + size);
    return answer;
  }
  if (range.size != checkpoint.size) {
    answer.set_status_code(web::http::status_codes::PartialContent);
    answer.headers().add("Content-Range", "bytes " + std::to_string(range.first) + "-" +
                                              std::to_string(range.first + range.size - 1) + "/" +
                                              size);
  }
  Exchange& exchange = ExchangeOf(call.request);
  exchange.file = std::move(checkpoint.file);
  exchange.file_offset = range.first;
  exchange.file_size = range.size;
  return answer;
}

}  // namespace stasis::kubelet_api
