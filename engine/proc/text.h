// Pieces of /proc text: lines, words and numbers.
#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine::text {

inline std::string_view Trim(std::string_view text) {
  constexpr std::string_view kBlank = " \t\n";
  const std::size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

/// Removes and returns what comes before the first `delimiter`, which goes too; all when there is
/// none.
inline std::string_view Cut(std::string_view& text, char delimiter) {
  const std::size_t end = std::min(text.find(delimiter), text.size());
  const std::string_view piece = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return piece;
}

inline std::string_view CutLine(std::string_view& text) { return Cut(text, '\n'); }

/// Removes and returns the first word; blanks before it are skipped.
inline std::string_view CutWord(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t\n"), text.size()));
  const std::size_t end = std::min(text.find_first_of(" \t\n"), text.size());
  const std::string_view word = text.substr(0, end);
  text.remove_prefix(end);
  return word;
}

inline std::vector<std::string_view> Words(std::string_view text) {
  std::vector<std::string_view> words;
  while (true) {
    const std::string_view word = CutWord(text);
    if (word.empty()) return words;
    words.push_back(word);
  }
}

/// The whole of `text` as a number; DataLoss with the text otherwise.
template <std::integral T>
Result<T> Number(std::string_view text, int base = 10) {
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) {
    return DataLoss("\"" + std::string(text.substr(0, 64)) + "\" is not the number expected");
  }
  return value;
}

/// What follows "`key`:" on the first line that begins so, without the blanks around it.
inline std::optional<std::string_view> Field(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    const std::string_view line = CutLine(text);
    if (line.starts_with(key) && line.substr(key.size()).starts_with(':')) {
      return Trim(line.substr(key.size() + 1));
    }
  }
  return std::nullopt;
}

/// Fields of one text: those that are asked for in their order are found without a search.
class Fields {
 public:
  explicit Fields(std::string_view text) : text_(text), rest_(text) {}

  /// As Field().
  std::optional<std::string_view> Find(std::string_view key) {
    const std::string_view before = text_.substr(0, text_.size() - rest_.size());
    for (std::string_view part : {rest_, before}) {
      while (!part.empty()) {
        const std::string_view line = CutLine(part);
        if (!line.starts_with(key) || !line.substr(key.size()).starts_with(':')) continue;
        rest_ = text_.substr(static_cast<std::size_t>(line.data() + line.size() - text_.data()));
        return Trim(line.substr(key.size() + 1));
      }
    }
    return std::nullopt;
  }

 private:
  std::string_view text_, rest_;
};

inline std::optional<std::string_view> Field(Fields& fields, std::string_view key) {
  return fields.Find(key);
}

/// `target` from the line "`key`:"; DataLoss when there is none, or no number on it.
template <typename Text, std::integral T>
Status ReadField(Text&& text, std::string_view key, T& target, int base = 10) {
  const std::optional<std::string_view> field = Field(text, key);
  if (!field) return DataLoss("no line \"" + std::string(key) + ":\"");
  const Result<T> value = Number<T>(*field, base);
  if (!value.ok()) return Annotate(value.status(), key);
  target = *value;
  return OkStatus();
}

}  // namespace stasis::engine::text
