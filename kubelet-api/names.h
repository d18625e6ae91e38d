// Names of Kubernetes' objects.
#pragma once

#include <algorithm>
#include <string_view>

namespace stasis::kubelet_api {

/// Of namespaces, pods, containers and nodes: RFC 1123 subdomains, which are safe in a path.
inline bool IsObjectName(std::string_view name) {
  constexpr std::size_t kMost = 253;
  return !name.empty() && name.size() <= kMost && name != "." && name != ".." &&
         std::ranges::all_of(name, [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
         });
}

}  // namespace stasis::kubelet_api
