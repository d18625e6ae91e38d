#pragma once

#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace stasis::archive {

/// "registry.example:5000/team/app:v1", taken apart.
struct ImageReference {
  std::string registry;    ///< Host and port; "docker.io" for names without a registry.
  std::string repository;  ///< "team/app".
  std::string tag;         ///< "latest" when there is none.

  std::string Text() const { return registry + "/" + repository + ":" + tag; }
};

/// InvalidArgument: not a name that an image can be pushed to (a digest cannot be chosen).
Result<ImageReference> ParseImageReference(std::string_view text);

}  // namespace stasis::archive
