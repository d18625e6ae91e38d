// Programs of the machine that a step is left to.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis {

/// Runs `words`, the first of which is looked for in the system's folders of programs, with `input`, in the
/// namespaces of the calling thread, and gives what it puts out. NotFound: there is no such program. Internal: it
/// fails; the message has the first line of what it says.
Result<std::string> RunTool(std::vector<std::string> words, std::string_view input = {});

}  // namespace stasis
