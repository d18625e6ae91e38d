#include "archive/json_fields.h"

namespace stasis::archive {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;  // a runtime spec has 6

/// Parses without exceptions and stops at kMaxDepth: destroying a deep value would overflow the
/// stack.
Result<json> Parse(std::string_view text, std::string_view what) {
  bool too_deep = false;
  const auto check = [&](int depth, json::parse_event_t, json&) {
    too_deep = too_deep || depth > kMaxDepth;
    return !too_deep;
  };
  json value = json::parse(text.begin(), text.end(), check, /*allow_exceptions=*/false);
  if (too_deep || value.is_discarded()) return InvalidArgument(std::string(what) + ": not JSON");
  return value;
}

}  // namespace

Result<json> ParseObject(std::string_view text, std::string_view what) {
  ASSIGN_OR_RETURN(json value, Parse(text, what));
  if (!value.is_object()) return InvalidArgument(std::string(what) + ": not a JSON object");
  return value;
}

Result<json> ParseArray(std::string_view text, std::string_view what) {
  ASSIGN_OR_RETURN(json value, Parse(text, what));
  if (!value.is_array()) return InvalidArgument(std::string(what) + ": not a JSON array");
  return value;
}

const json& Field(const json& object, const char* key) {
  static const json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

std::string TextField(const json& object, const char* key) {
  const json& field = Field(object, key);
  return field.is_string() ? field.get<std::string>() : "";
}

const json& ArrayField(const json& object, const char* key) {
  static const json kEmpty = json::array();
  const json& field = Field(object, key);
  return field.is_array() ? field : kEmpty;
}

std::string Dump(const json& value) {
  return value.dump(2, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
}

}  // namespace stasis::archive
