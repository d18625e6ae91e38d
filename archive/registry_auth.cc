#include "archive/registry_auth.h"

#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <fcntl.h>

#include <cerrno>
#include <cstdlib>
#include <vector>

#include "archive/json_fields.h"
#include "engine/base/io.h"

namespace stasis::archive {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxAuthFile = std::size_t{1} << 20;

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

std::string FromEnvironment(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

/// The keys that may hold credentials for `reference`, the most special one first (containers-auth.json(5)).
std::vector<std::string> Keys(const ImageReference& reference) {
  std::vector<std::string> keys;
  for (std::string key = reference.registry + "/" + reference.repository;;) {
    keys.push_back(key);
    const std::size_t slash = key.rfind('/');
    if (slash == std::string::npos) break;
    key.resize(slash);
  }
  keys.push_back("https://" + reference.registry);
  keys.push_back("http://" + reference.registry);
  if (reference.registry == "docker.io") keys.push_back("https://index.docker.io/v1/");
  return keys;
}

Result<std::optional<Credentials>> Decode(const json& entry, const std::string& file) {
  std::string text;
  if (!absl::Base64Unescape(TextField(entry, "auth"), &text)) {
    return InvalidArgument(file + ": an \"auth\" that is not base64");
  }
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) return std::optional<Credentials>();
  return Credentials{.user = text.substr(0, colon), .password = text.substr(colon + 1)};
}

/// Reads "key=value" or "key="value"" off the front of `text`.
std::pair<std::string, std::string> TakeParameter(std::string_view& text) {
  const std::size_t equals = text.find('=');
  const std::string key =
      absl::AsciiStrToLower(absl::StripAsciiWhitespace(ToAbsl(text.substr(0, equals))));
  text.remove_prefix(equals == std::string_view::npos ? text.size() : equals + 1);
  const bool quoted = text.starts_with('"');
  if (quoted) text.remove_prefix(1);
  const std::size_t end = text.find(quoted ? '"' : ',');
  const std::string value(text.substr(0, end));
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  if (const std::size_t next = text.find_first_not_of(", "); next != std::string_view::npos) {
    text.remove_prefix(next);
  } else {
    text = {};
  }
  return {key, value};
}

}  // namespace

Result<std::optional<Credentials>> FindCredentials(const std::string& path,
                                                   const ImageReference& reference) {
  std::string file = path;
  if (file.empty()) file = FromEnvironment("REGISTRY_AUTH_FILE");
  const bool asked_for = !file.empty();
  if (!asked_for) file = FromEnvironment("HOME") + "/.docker/config.json";
  const Result<std::string> text = ReadFileAt(AT_FDCWD, file, kMaxAuthFile);
  if (!asked_for && ErrnoOf(text.status()) == ENOENT) return std::optional<Credentials>();
  if (!text.ok()) return Annotate(text.status(), "the auth file");
  ASSIGN_OR_RETURN(const json object, ParseObject(*text, file));
  for (const std::string& key : Keys(reference)) {
    const json& entry = Field(Field(object, "auths"), key.c_str());
    if (!TextField(entry, "auth").empty()) return Decode(entry, file);
  }
  return std::optional<Credentials>();
}

std::string BasicAuthorization(const Credentials& credentials) {
  return "Basic " + absl::Base64Escape(credentials.user + ":" + credentials.password);
}

Challenge ParseChallenge(std::string_view header) {
  Challenge challenge;
  const std::size_t blank = header.find(' ');
  challenge.scheme = absl::AsciiStrToLower(ToAbsl(header.substr(0, blank)));
  header.remove_prefix(blank == std::string_view::npos ? header.size() : blank + 1);
  while (!header.empty()) challenge.parameters.insert(TakeParameter(header));
  return challenge;
}

}  // namespace stasis::archive
