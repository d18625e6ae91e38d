// Paths of a container's root that a delta must not touch.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace stasis::archive {

class LeftOutPaths {
 public:
  /// Absolute paths, and KernelPaths() besides.
  explicit LeftOutPaths(const std::vector<std::string>& paths);

  /// `path` is relative to the root ("etc/hosts"): is it, or a folder above it, one of them?
  bool Covers(std::string_view path) const;

  /// Is one of them below `path`? Then it must not be removed.
  bool HasBelow(std::string_view path) const;

 private:
  std::set<std::string, std::less<>> paths_;  // without slashes at their ends
};

}  // namespace stasis::archive
