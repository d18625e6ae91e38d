// Sets of pages as runs: sorted, disjoint, none adjacent to the next.
#pragma once

#include <vector>

#include "engine/memory/page_map.h"

namespace stasis::engine {

using PageRanges = std::vector<PageRange>;

/// Adds `range`, which begins behind all of `ranges`.
void Append(PageRanges& ranges, PageRange range);

PageRanges Unite(const PageRanges& a, const PageRanges& b);
PageRanges Intersect(const PageRanges& a, const PageRanges& b);
/// What of `ranges` is in `part`; found in the time of a search.
PageRanges Within(const PageRanges& ranges, PageRange part);
/// What is in `a` and not in `b`.
PageRanges Subtract(const PageRanges& a, const PageRanges& b);

std::uint64_t PageCount(const PageRanges& ranges);

}  // namespace stasis::engine
