// Reading JSON of strangers: no field need be there, or be of the type that it should.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/status.h"

namespace stasis::archive {

/// InvalidArgument, naming `what`, when `text` is no JSON object (or nested absurdly deep).
Result<nlohmann::json> ParseObject(std::string_view text, std::string_view what);
Result<nlohmann::json> ParseArray(std::string_view text, std::string_view what);

/// The field `key` of `object`, or a null, empty string, empty array, 0 where it is not there.
const nlohmann::json& Field(const nlohmann::json& object, const char* key);
std::string TextField(const nlohmann::json& object, const char* key);
const nlohmann::json& ArrayField(const nlohmann::json& object, const char* key);

template <typename T>
T NumberField(const nlohmann::json& object, const char* key) {
  const nlohmann::json& field = Field(object, key);
  if (field.is_number_unsigned()) {
    const auto value = field.get<std::uint64_t>();
    return std::in_range<T>(value) ? static_cast<T>(value) : T{};
  }
  if (!field.is_number_integer()) return T{};
  const auto value = field.get<std::int64_t>();
  return std::in_range<T>(value) ? static_cast<T>(value) : T{};
}

/// Indented by two, as other writers of archives do. Bytes that are no UTF-8 become U+FFFD.
std::string Dump(const nlohmann::json& value);

}  // namespace stasis::archive
