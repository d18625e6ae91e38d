#include "engine/memory/page_ranges.h"

#include <algorithm>

namespace stasis::engine {

void Append(PageRanges& ranges, PageRange range) {
  if (range.start >= range.end) return;
  if (!ranges.empty() && range.start <= ranges.back().end) {
    ranges.back().end = std::max(ranges.back().end, range.end);
  } else {
    ranges.push_back(range);
  }
}

PageRanges Unite(const PageRanges& a, const PageRanges& b) {
  PageRanges both;
  auto x = a.begin(), y = b.begin();
  while (x != a.end() || y != b.end()) {
    const bool take_x = y == b.end() || (x != a.end() && x->start <= y->start);
    Append(both, take_x ? *x++ : *y++);
  }
  return both;
}

PageRanges Intersect(const PageRanges& a, const PageRanges& b) {
  PageRanges common;
  auto x = a.begin(), y = b.begin();
  while (x != a.end() && y != b.end()) {
    Append(common, {std::max(x->start, y->start), std::min(x->end, y->end)});
    if (x->end <= y->end) {
      ++x;
    } else {
      ++y;
    }
  }
  return common;
}

PageRanges Within(const PageRanges& ranges, PageRange part) {
  PageRanges inside;
  auto at = std::ranges::upper_bound(ranges, part.start, {}, &PageRange::end);
  for (; at != ranges.end() && at->start < part.end; ++at) {
    Append(inside, {std::max(at->start, part.start), std::min(at->end, part.end)});
  }
  return inside;
}

PageRanges Subtract(const PageRanges& a, const PageRanges& b) {
  PageRanges rest;
  auto out = b.begin();
  for (const PageRange& range : a) {
    std::uint64_t at = range.start;
    while (out != b.end() && out->end <= at) ++out;
    for (auto next = out; next != b.end() && next->start < range.end; ++next) {
      Append(rest, {at, next->start});
      at = next->end;
    }
    Append(rest, {at, range.end});
  }
  return rest;
}

std::uint64_t PageCount(const PageRanges& ranges) {
  std::uint64_t count = 0;
  for (const PageRange& range : ranges) count += range.page_count();
  return count;
}

}  // namespace stasis::engine
