#include "engine/mounts/outside_mounts.h"

#include <string_view>

namespace stasis::engine {

Result<ExternalMounts> ParseExternalMounts(const std::vector<std::string>& external) {
  constexpr std::string_view kKind = "mnt[";
  ExternalMounts mounts;
  for (const std::string_view text : external) {
    if (!text.starts_with(kKind)) continue;
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) {
      return InvalidArgument("--external " + std::string(text) + " is not mnt[THING]:NAME");
    }
    const std::string_view thing = text.substr(kKind.size(), end - kKind.size());
    std::string_view name = text.substr(end + 1);
    if (name.starts_with(':')) name.remove_prefix(1);
    if (thing.empty()) {
      mounts.automatic = true;
    } else if (name.empty()) {
      return InvalidArgument("--external " + std::string(text) + " has no name: mnt[" +
                             std::string(thing) + "]:NAME");
    } else {
      mounts.named.insert_or_assign(std::string(thing), std::string(name));
    }
  }
  return mounts;
}

}  // namespace stasis::engine
