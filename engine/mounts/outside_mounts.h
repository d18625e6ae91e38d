// criu(8) --external mnt[…]:…: mounts that a tree has from outside.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

/// Of a dump: names by the places where they are mounted. Of a restore: paths of the machine by these names.
struct ExternalMounts {
  std::map<std::string, std::string> named;
  bool automatic =
      false;  ///< mnt[]: what is not named has the path that it has on the machine as its name.
};

/// What of `external` (Options::external) is about mounts. InvalidArgument: not KIND[THING]:NAME.
Result<ExternalMounts> ParseExternalMounts(const std::vector<std::string>& external);

}  // namespace stasis::engine
