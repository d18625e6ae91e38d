// The pages of a shared memory object, whoever maps them.
#pragma once

#include "engine/base/status.h"
#include "engine/memory/page_ranges.h"

namespace stasis::engine {

/// Offsets of the pages that object `fd` has, in memory or swapped out, but for those of `known`. Moves the offset of
/// the open file.
Result<PageRanges> PagesOfObject(int fd, const PageRanges& known = {});

}  // namespace stasis::engine
