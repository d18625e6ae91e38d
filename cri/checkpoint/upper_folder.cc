#include "cri/checkpoint/upper_folder.h"

#include <fcntl.h>

#include <vector>

#include "engine/base/io.h"

namespace stasis::cri {
namespace {

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

// The kernel writes space, tab, newline and backslash as three octal digits. proc_pid_mountinfo(5)
std::string Unescape(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain +=
          static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + text[i + 3] - '0');
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

}  // namespace

std::optional<std::string> UpperFolderIn(std::string_view mountinfo) {
  constexpr std::string_view kUpper = "upperdir=";
  std::optional<std::string> upper;
  for (const std::string_view line : Split(mountinfo, '\n')) {
    // "id parent major:minor root MOUNTPOINT options [optional…] - TYPE source SUPER-OPTIONS"
    const std::size_t dash = line.find(" - ");
    const std::vector<std::string_view> mount = Split(line.substr(0, dash), ' ');
    if (dash == std::string_view::npos || mount.size() < 6 || mount[4] != "/") continue;
    upper.reset();  // what is mounted over the root later hides what was there
    const std::vector<std::string_view> source = Split(line.substr(dash + 3), ' ');
    if (source.size() < 3 || source[0] != "overlay") continue;
    for (const std::string_view option : Split(source[2], ',')) {
      if (option.starts_with(kUpper)) upper = Unescape(option.substr(kUpper.size()));
    }
  }
  return upper;
}

Result<std::optional<UniqueFd>> OpenUpperFolder(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/mountinfo";
  ASSIGN_OR_RETURN(const std::string mountinfo, ReadFileAt(AT_FDCWD, path));
  const std::optional<std::string> upper = UpperFolderIn(mountinfo);
  if (!upper) return std::optional<UniqueFd>();
  ASSIGN_OR_RETURN(UniqueFd folder, OpenAt(AT_FDCWD, *upper, O_RDONLY | O_DIRECTORY));
  return std::optional(std::move(folder));
}

}  // namespace stasis::cri
