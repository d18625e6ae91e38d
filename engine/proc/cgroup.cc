#include "engine/proc/cgroup.h"

#include <algorithm>

#include "engine/proc/text.h"

namespace stasis::engine {

Result<CgroupSet> ParseCgroups(std::string_view text) {
  CgroupSet set;
  while (!text.empty()) {
    std::string_view path = text::CutLine(text);
    if (path.empty()) continue;
    (void)text::Cut(path, ':');  // the hierarchy's number, of this boot
    const std::string_view controllers = text::Cut(path, ':');
    if (!path.starts_with('/')) return DataLoss("/proc/PID/cgroup has another form");
    set.push_back({std::string(controllers), std::string(path)});
  }
  std::ranges::sort(set);
  return set;
}

const std::string* PathIn(const CgroupSet& set, std::string_view controllers) {
  const auto found = std::ranges::find(set, controllers, &CgroupMember::controllers);
  return found == set.end() ? nullptr : &found->path;
}

const char* Below(const std::string& base, const std::string& path) {
  if (base == "/") return path == "/" ? "" : path.c_str();
  if (!path.starts_with(base)) return nullptr;
  const char* const rest = path.c_str() + base.size();
  return *rest == '\0' || *rest == '/' ? rest : nullptr;
}

}  // namespace stasis::engine
