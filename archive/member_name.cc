#include "archive/member_name.h"

#include <absl/strings/escaping.h>

#include <algorithm>

namespace stasis::archive {
namespace {

constexpr std::size_t kMaxName = 4095;  // PATH_MAX without its NUL

bool IsControl(char c) { return (static_cast<unsigned char>(c) < 0x20) || c == 0x7f; }

}  // namespace

Status CheckRelativePath(std::string_view path) {
  if (path.empty()) return InvalidArgument("a member without a name");
  if (path.size() > kMaxName) {
    return InvalidArgument("a member's name of " + std::to_string(path.size()) + " bytes");
  }
  const std::string shown = "member \"" + Printable(path) + "\"";
  if (path.front() == '/') return InvalidArgument(shown + ": an absolute name");
  for (std::string_view rest = path;;) {
    const std::size_t slash = rest.find('/');
    const std::string_view component = rest.substr(0, slash);
    if (component == "..") return InvalidArgument(shown + ": the name climbs out");
    if (component.empty() || component == "." || component.find('\0') != component.npos) {
      return InvalidArgument(shown + ": an empty part in the name");
    }
    if (slash == std::string_view::npos) return OkStatus();
    rest.remove_prefix(slash + 1);
  }
}

Status CheckMemberName(std::string_view name) {
  RETURN_IF_ERROR(CheckRelativePath(name));
  if (std::any_of(name.begin(), name.end(), IsControl)) {
    return InvalidArgument("member \"" + Printable(name) + "\": a control character in the name");
  }
  return OkStatus();
}

std::string Printable(std::string_view text) {
  return absl::Utf8SafeCHexEscape(absl::string_view(text.data(), text.size()));
}

}  // namespace stasis::archive
