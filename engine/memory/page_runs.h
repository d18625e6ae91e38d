// What a pagemap file tells: which pages there are, and where.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/memory/page_ranges.h"

namespace stasis::engine {

/// PagemapEntry.flags: PE_PARENT, PE_LAZY, PE_PRESENT.
inline constexpr std::uint32_t kRunInParent = 1, kRunLazy = 2, kRunPresent = 4;

struct PageRun {
  PageRange pages;
  std::uint32_t flags = 0;
};

/// Two sets that have no page in common, as runs in rising order.
std::vector<PageRun> MergeRuns(const PageRanges& a, std::uint32_t a_flags, const PageRanges& b,
                               std::uint32_t b_flags);

/// File `name` of `type` about pages-`pages_id`.img, in which the present runs lie one behind another.
Status WritePageRuns(ImageSink& sink, std::string_view name, std::string_view type,
                     std::uint32_t pages_id, const std::vector<PageRun>& runs);

}  // namespace stasis::engine
