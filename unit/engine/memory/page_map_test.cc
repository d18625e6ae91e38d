#include "engine/memory/page_map.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "engine/base/io.h"

namespace stasis::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::FieldsAre;

constexpr std::size_t kPages = 8;

// Some pages of this program's own executable file, or of none.
char* Map(int fd) {
  const int flags = MAP_PRIVATE | (fd < 0 ? MAP_ANONYMOUS : 0);
  void* const area = ::mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  EXPECT_NE(area, MAP_FAILED);
  ::madvise(area, kPages * kPageBytes, MADV_NOHUGEPAGE);
  return static_cast<char*>(area);
}

void Touch(char* area, std::size_t page) { area[page * kPageBytes] = 1; }

char Look(const char* area, std::size_t page) {
  return *static_cast<const volatile char*>(area + page * kPageBytes);
}

// With PAGEMAP_SCAN, where this kernel has it, and page by page.
class PageMapTest : public ::testing::TestWithParam<bool> {
 protected:
  std::vector<PageRange> Content(const char* area) {
    const Result<UniqueFd> self = OpenAt(AT_FDCWD, "/proc/self", O_RDONLY | O_DIRECTORY);
    const Result<PageMap> map = PageMap::Open(self->get(), GetParam());
    EXPECT_TRUE(map.ok());
    const auto start = reinterpret_cast<std::uintptr_t>(area);
    Result<PageMap::Own> own = map->FindOwn(start, start + kPages * kPageBytes);
    EXPECT_TRUE(own.ok()) << own.status();
    for (PageRange& range : own->content) {
      range = {(range.start - start) / kPageBytes, (range.end - start) / kPageBytes};
    }
    return own->content;
  }
};

TEST_P(PageMapTest, PagesThatWereOnlyReadAreLeftOut) {
  char* const area = Map(-1);
  for (const std::size_t page : {1, 2, 5}) Touch(area, page);
  EXPECT_EQ(Look(area, 3), 0);
  EXPECT_THAT(Content(area), ElementsAre(FieldsAre(1, 3), FieldsAre(5, 6)));
  ::munmap(area, kPages * kPageBytes);
}

TEST_P(PageMapTest, OfAFileThoseThatWereCopiedOnWriteAreItsOwn) {
  const Result<UniqueFd> program = OpenAt(AT_FDCWD, "/proc/self/exe", O_RDONLY);
  char* const area = Map(program->get());
  Look(area, 0), Look(area, 4);
  Touch(area, 7);
  EXPECT_THAT(Content(area), ElementsAre(FieldsAre(7, 8)));
  ::munmap(area, kPages * kPageBytes);
}

INSTANTIATE_TEST_SUITE_P(Ways, PageMapTest, ::testing::Bool(),
                         [](const auto& scans) { return scans.param ? "Scan" : "PageByPage"; });

}  // namespace
}  // namespace stasis::engine
