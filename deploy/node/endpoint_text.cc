#include "deploy/node/endpoint_text.h"

#include <algorithm>
#include <string_view>
#include <vector>

namespace stasis::node {
namespace {

constexpr std::string_view kFlag = "--container-runtime-endpoint";
constexpr std::string_view kKey = "containerRuntimeEndpoint:";
constexpr std::string_view kBlanks = " \t";

// A part of the text: where it begins, and its length.
struct Span {
  std::size_t begin = 0;
  std::size_t size = 0;
};

std::size_t EndOfLine(const std::string& text, std::size_t from) {
  return std::min(text.find('\n', from), text.size());
}

bool InComment(const std::string& text, std::size_t at) {
  const std::size_t line = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;  // npos + 1 is 0
  const std::size_t first = text.find_first_not_of(kBlanks, line);
  return text[first] == '#' ||
         text[first] == ';';  // `;` is systemd's other comment, systemd.syntax(7)
}

// The values of the flag, each as `--flag=value` or `--flag value`, up to a blank or a quote.
std::vector<Span> FlagValues(const std::string& text, std::string_view flag) {
  std::vector<Span> values;
  for (std::size_t at = text.find(flag); at != std::string::npos; at = text.find(flag, at + 1)) {
    const std::size_t after = at + flag.size();
    const bool begins =
        at == 0 || std::string_view(" \t\n\"'=").find(text[at - 1]) != std::string::npos;
    if (!begins || after >= text.size() || InComment(text, at)) continue;
    if (text[after] != '=' && text[after] != ' ') continue;  // the beginning of a longer flag
    const std::size_t begin = after + 1;
    const std::size_t end = std::min(text.find_first_of(" \t\n\"'\\", begin), text.size());
    values.push_back({begin, end - begin});
  }
  return values;
}

// The lines of the key, without their ends: only at the margin is a key a top-level one.
std::vector<Span> KeyLines(const std::string& text) {
  std::vector<Span> lines;
  for (std::size_t at = 0; at < text.size(); at = EndOfLine(text, at) + 1) {
    if (text.compare(at, kKey.size(), kKey) == 0) lines.push_back({at, EndOfLine(text, at) - at});
  }
  return lines;
}

std::string ScalarOf(std::string_view line) {
  line.remove_prefix(std::min(line.find_first_not_of(kBlanks, kKey.size()), line.size()));
  if (!line.empty() && (line.front() == '"' || line.front() == '\'')) {
    return std::string(line.substr(1, line.find(line.front(), 1) - 1));
  }
  return std::string(line.substr(0, line.find_first_of(" \t\r#")));
}

Result<std::vector<Span>> Occurrences(const std::string& text, Syntax syntax) {
  if (syntax == Syntax::kYaml && text.find_first_not_of(" \t\r\n") != std::string::npos &&
      text[text.find_first_not_of(" \t\r\n")] == '{') {
    return Unimplemented(
        "the kubelet's configuration is JSON, which is not edited; give the kubelet "
        "the flag --container-runtime-endpoint in /etc/default/kubelet instead");
  }
  std::vector<Span> found = syntax == Syntax::kFlag ? FlagValues(text, kFlag) : KeyLines(text);
  if (found.size() > 1) {
    return FailedPrecondition("the container runtime endpoint is set " +
                              std::to_string(found.size()) + " times; leave one of them");
  }
  return found;
}

}  // namespace

std::vector<std::string> ValuesOf(const std::string& text, std::string_view flag) {
  std::vector<std::string> values;
  for (const Span& span : FlagValues(text, flag)) {
    values.push_back(text.substr(span.begin, span.size));
  }
  return values;
}

Result<std::optional<std::string>> EndpointIn(const std::string& text, Syntax syntax) {
  ASSIGN_OR_RETURN(const std::vector<Span> found, Occurrences(text, syntax));
  if (found.empty()) return std::optional<std::string>();
  const std::string part = text.substr(found[0].begin, found[0].size);
  return std::optional(syntax == Syntax::kFlag ? part : ScalarOf(part));
}

Result<std::string> WithEndpoint(const std::string& text, Syntax syntax,
                                 const std::optional<std::string>& value) {
  ASSIGN_OR_RETURN(const std::vector<Span> found, Occurrences(text, syntax));
  std::string changed = text;
  if (syntax == Syntax::kFlag) {
    if (found.empty() || !value) {
      return FailedPrecondition("there is no --container-runtime-endpoint to be changed");
    }
    return changed.replace(found[0].begin, found[0].size, *value);
  }
  if (!value) {
    return found.empty() ? text : changed.erase(found[0].begin, found[0].size + 1);
  }
  const std::string line = std::string(kKey) + " \"" + *value + "\"";
  if (!found.empty()) return changed.replace(found[0].begin, found[0].size, line);
  if (!changed.empty() && changed.back() != '\n') changed += '\n';
  return changed + line + "\n";
}

}  // namespace stasis::node
