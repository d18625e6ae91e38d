#include "cmd/kubectl-checkpoint/output.h"

#include <algorithm>
#include <cstdio>

namespace stasis::kubectl {
namespace {

using nlohmann::json;

std::string Text(const json& value) {
  const auto replace = json::error_handler_t::replace;
  std::string text =
      value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, replace);
  // What comes from a node is not to steer the terminal.
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 0x7f; }, '?');
  return text;
}

// Scalars are written as JSON, which is YAML too.
void AppendYaml(std::string& out, const json& value, const std::string& indent) {
  const auto child = [&](const json& of) {
    if (!of.is_structured() || of.empty()) {
      out += " " + of.dump(-1, ' ', true, json::error_handler_t::replace) + "\n";
    } else {
      out += "\n";
      AppendYaml(out, of, indent + "  ");
    }
  };
  if (value.is_object()) {
    for (const auto& [key, of] : value.items()) {
      out += indent + json(key).dump(-1, ' ', true, json::error_handler_t::replace) + ":";
      child(of);
    }
  } else {
    for (const json& of : value) {
      out += indent + "-";
      child(of);
    }
  }
}

void PrintStructured(const json& value, bool yaml) {
  std::string text;
  if (yaml) {
    AppendYaml(text, value, "");
  } else {
    text = value.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
  }
  std::fputs(text.c_str(), stdout);
}

void PrintTable(const json& rows, const std::vector<Column>& columns, bool wide) {
  std::vector<std::vector<std::string>> lines(rows.size() + 1);
  std::vector<std::size_t> widths;
  for (const Column& column : columns) {
    if (column.wide && !wide) continue;
    lines[0].emplace_back(column.title);
    std::size_t width = lines[0].back().size();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      lines[i + 1].push_back(rows[i].contains(column.field) ? Text(rows[i][column.field]) : "");
      width = std::max(width, lines[i + 1].back().size());
    }
    widths.push_back(width);
  }
  for (const std::vector<std::string>& line : lines) {
    std::string text;
    for (std::size_t i = 0; i < line.size(); ++i) {
      text += line[i];
      if (i + 1 < line.size()) text.append(widths[i] + 3 - line[i].size(), ' ');
    }
    std::printf("%s\n", text.c_str());
  }
}

}  // namespace

void Print(const json& rows, const std::vector<Column>& columns, const std::string& format) {
  if (format == "json" || format == "yaml") {
    PrintStructured({{"items", rows}}, format == "yaml");
  } else if (format == "name") {
    for (const json& row : rows) std::printf("checkpoint/%s\n", Text(row["name"]).c_str());
  } else {
    PrintTable(rows, columns, format == "wide");
  }
}

void PrintOne(const json& object, const std::string& format) {
  PrintStructured(object, format != "json");
}

}  // namespace stasis::kubectl
