// Names of archive members: which are there, and which we take from strangers.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/status.h"

namespace stasis::archive {

inline constexpr std::string_view kImagesPrefix = "checkpoint/";

/// InvalidArgument unless `path` is a relative path that stays below where it starts: no "..", no
/// empty or "." component, at most 4095 bytes.
Status CheckRelativePath(std::string_view path);

/// The same for a member of an archive, which has no control characters either.
Status CheckMemberName(std::string_view name);

/// `text` with everything that could move a terminal's cursor made visible, for messages.
std::string Printable(std::string_view text);

}  // namespace stasis::archive
