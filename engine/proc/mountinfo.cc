#include "engine/proc/mountinfo.h"

#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using text::Cut;
using text::Number;

// Three octal digits after a backslash; the kernel escapes blank, tab, newline and backslash so,
// and in a source "#" too.
std::string Unescape(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      if (const Result<unsigned> byte = Number<unsigned>(text.substr(i + 1, 3), 8);
          byte.ok() && *byte < 256) {
        plain += static_cast<char>(*byte);
        i += 3;
        continue;
      }
    }
    plain += text[i];
  }
  return plain;
}

// "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue". Cut at single
// blanks: a source may be empty.
Result<Mount> ParseLine(std::string_view line) {
  Mount mount;
  ASSIGN_OR_RETURN(mount.id, Number<int>(Cut(line, ' ')));
  ASSIGN_OR_RETURN(mount.parent, Number<int>(Cut(line, ' ')));
  std::string_view device = Cut(line, ' ');
  ASSIGN_OR_RETURN(mount.dev_major, Number<std::uint32_t>(Cut(device, ':')));
  ASSIGN_OR_RETURN(mount.dev_minor, Number<std::uint32_t>(device));
  mount.root = Unescape(Cut(line, ' '));
  mount.mountpoint = Unescape(Cut(line, ' '));
  mount.options = Cut(line, ' ');
  while (true) {
    if (line.empty()) return DataLoss("no \" - \"");
    const std::string_view field = Cut(line, ' ');
    if (field == "-") break;
    mount.propagation.emplace_back(field);
  }
  mount.fs_type = Unescape(Cut(line, ' '));
  mount.source = Unescape(Cut(line, ' '));
  mount.super_options = line;
  return mount;
}

}  // namespace

Result<std::vector<Mount>> ParseMountinfo(std::string_view text) {
  std::vector<Mount> mounts;
  while (!text.empty()) {
    const std::string_view line = text::CutLine(text);
    Result<Mount> mount = ParseLine(line);
    if (!mount.ok()) {
      return Annotate(mount.status(),
                      "/proc/PID/mountinfo: \"" + std::string(line.substr(0, 128)) + "\"");
    }
    mounts.push_back(*std::move(mount));
  }
  return mounts;
}

}  // namespace stasis::engine
