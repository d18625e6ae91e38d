#include "archive/left_out_paths.h"

#include <functional>

#include "archive/rootfs_diff.h"

namespace stasis::archive {

const std::vector<std::string>& KernelPaths() {
  static const std::vector<std::string> kPaths = {
      "/dev", "/proc", "/sys", "/run/.containerenv", "/run/secrets",
  };
  return kPaths;
}

LeftOutPaths::LeftOutPaths(const std::vector<std::string>& paths) {
  for (const std::vector<std::string>* const list : {&paths, &KernelPaths()}) {
    for (const std::string& path : *list) {
      const std::size_t begin = path.find_first_not_of('/');
      if (begin == std::string::npos) continue;  // "/" itself: the root, which is what we work on
      paths_.insert(path.substr(begin, path.find_last_not_of('/') - begin + 1));
    }
  }
}

bool LeftOutPaths::Covers(std::string_view path) const {
  for (std::size_t slash = path.find('/');; slash = path.find('/', slash + 1)) {
    if (paths_.contains(path.substr(0, slash))) return true;
    if (slash == std::string_view::npos) return false;
  }
}

bool LeftOutPaths::HasBelow(std::string_view path) const {
  const std::string below = std::string(path) + "/";
  const auto next = paths_.lower_bound(below);
  return next != paths_.end() && next->starts_with(below);
}

}  // namespace stasis::archive
