// What kubectl checkpoint prints: a table, or its rows as JSON, YAML or names.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace stasis::kubectl {

struct Column {
  const char* title;
  const char* field;
  bool wide = false;  ///< Only with -o wide.
};

/// `rows` is an array of objects; `format` "", wide, json, yaml or name.
void Print(const nlohmann::json& rows, const std::vector<Column>& columns,
           const std::string& format);
/// One object, as YAML unless `format` is json.
void PrintOne(const nlohmann::json& object, const std::string& format);

}  // namespace stasis::kubectl
