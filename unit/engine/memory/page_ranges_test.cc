#include "engine/memory/page_ranges.h"

#include <gmock/gmock.h>

#include <random>
#include <set>

namespace stasis::engine {
namespace {

using Pages = std::set<std::uint64_t>;

Pages PagesIn(const PageRanges& ranges) {
  Pages pages;
  for (const PageRange& range : ranges) {
    for (std::uint64_t at = range.start; at < range.end; at += kPageBytes) pages.insert(at);
  }
  return pages;
}

PageRanges RangesOf(const Pages& pages) {
  PageRanges ranges;
  for (const std::uint64_t page : pages) Append(ranges, {page, page + kPageBytes});
  return ranges;
}

void ExpectTidy(const PageRanges& ranges) {
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    EXPECT_LT(ranges[i].start, ranges[i].end);
    if (i > 0) {
      EXPECT_LT(ranges[i - 1].end, ranges[i].start);
    }
  }
}

TEST(PageRangesTest, AreAsTheSetsOfTheirPages) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    Pages a, b, both, common, rest;
    for (std::uint64_t page = 0; page < 40; ++page) {
      if (random() % 3 != 0) a.insert(page * kPageBytes);
      if (random() % 3 == 0) b.insert(page * kPageBytes);
    }
    std::ranges::set_union(a, b, std::inserter(both, both.end()));
    std::ranges::set_intersection(a, b, std::inserter(common, common.end()));
    std::ranges::set_difference(a, b, std::inserter(rest, rest.end()));
    const PageRanges x = RangesOf(a), y = RangesOf(b);
    EXPECT_EQ(PagesIn(Unite(x, y)), both);
    EXPECT_EQ(PagesIn(Intersect(x, y)), common);
    EXPECT_EQ(PagesIn(Subtract(x, y)), rest);
    EXPECT_EQ(PageCount(x), a.size());
    const PageRange part = {random() % 20 * kPageBytes, (20 + random() % 20) * kPageBytes};
    EXPECT_EQ(PagesIn(Within(x, part)), PagesIn(Intersect(x, {part})));
    for (const PageRanges& ranges : {Unite(x, y), Intersect(x, y), Subtract(x, y)}) {
      ExpectTidy(ranges);
    }
  }
}

}  // namespace
}  // namespace stasis::engine
