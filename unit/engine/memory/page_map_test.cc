#include "engine/memory/page_map.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/io.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/userfault.h"

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

// Three huge pages' worth of memory that is watched, by the short way through the page tables (where this kernel
// shows holes so) and by the other.
class WatchedMemoryTest : public ::testing::TestWithParam<bool> {
 protected:
  static constexpr std::size_t kHugePages = 512, kAll = 3 * kHugePages;

  ~WatchedMemoryTest() override { ::munmap(mapped_, (kAll + kHugePages) * kPageBytes); }

  bool Watch(int flags) {
    const std::size_t bytes = (kAll + kHugePages) * kPageBytes;
    mapped_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    const auto at = reinterpret_cast<std::uintptr_t>(mapped_);
    start_ =
        (at + kHugePages * kPageBytes - 1) / (kHugePages * kPageBytes) * kHugePages * kPageBytes;
    area_ = static_cast<char*>(mapped_) + (start_ - at);
    ::madvise(area_, kAll * kPageBytes, MADV_HUGEPAGE);
    fd_.Reset(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | 1)));
    return StartUserfault(fd_.get()).ok() && WatchRange(fd_.get(), {start_, End()});
  }
  void TouchAll() {
    for (std::size_t page = 0; page < kAll; ++page) Touch(area_, page);
  }
  void Drop(std::size_t page, std::size_t count) {
    EXPECT_EQ(::madvise(area_ + page * kPageBytes, count * kPageBytes, MADV_DONTNEED), 0);
  }
  std::uint64_t End() const { return start_ + kAll * kPageBytes; }
  std::vector<PageRange> Unwritten() const {
    auto found = Self().Unwritten(start_, End(), GetParam()).value_or(std::vector<PageRange>());
    for (PageRange& range : found) {
      range = {(range.start - start_) / kPageBytes, (range.end - start_) / kPageBytes};
    }
    return found;
  }
  PageMap Self() const {
    const Result<UniqueFd> self = OpenAt(AT_FDCWD, "/proc/self", O_RDONLY | O_DIRECTORY);
    return *PageMap::Open(self->get());
  }

  void* mapped_ = nullptr;
  char* area_ = nullptr;
  std::uint64_t start_ = 0;
  UniqueFd fd_;
};

TEST_P(WatchedMemoryTest, WhatIsNotMappedAnyMoreIsNotWatched) {
  if (!Watch(MAP_PRIVATE)) GTEST_SKIP() << "this kernel has no asynchronous userfaultfd";
  Touch(area_, 3);
  EXPECT_TRUE(Self().IsWatched(start_, End()));
  ASSERT_EQ(::munmap(area_ + 5 * kPageBytes, kPageBytes), 0);
  EXPECT_FALSE(Self().IsWatched(start_, End()));
  EXPECT_TRUE(Self().IsWatched(start_, start_ + 5 * kPageBytes));
  EXPECT_FALSE(Self().IsWatched(start_ + 5 * kPageBytes, start_ + 6 * kPageBytes));
}

TEST_P(WatchedMemoryTest, WhatIsWrittenOrGoneIsNotUnwritten) {
  if (!Watch(MAP_PRIVATE)) GTEST_SKIP() << "this kernel has no asynchronous userfaultfd";
  TouchAll();
  EXPECT_TRUE(Self().TakeWritten(start_, End()).ok());
  Touch(area_, 5);
  Drop(7, 1);
  Drop(kHugePages, kHugePages);  // perhaps a huge page, and its page table with it
  EXPECT_THAT(Unwritten(), ElementsAre(FieldsAre(0, 5), FieldsAre(6, 7), FieldsAre(8, kHugePages),
                                       FieldsAre(2 * kHugePages, kAll)));
}

TEST_P(WatchedMemoryTest, OfSharedMemoryItIsKnownToo) {
  if (!Watch(MAP_SHARED)) GTEST_SKIP() << "this kernel has no asynchronous userfaultfd";
  for (std::size_t page = 0; page < kHugePages; ++page) Touch(area_, page);
  EXPECT_TRUE(Self().TakeAll(start_, End()).ok());
  Touch(area_, 3);
  Touch(area_, 4);
  Drop(4, 3);                        // pages 5 and 6 come back as they were
  Touch(area_, 2 * kHugePages + 1);  // where no page was
  EXPECT_EQ(Look(area_, 5), 1);
  Look(area_, kHugePages + 1);
  const auto unwritten = Unwritten();
  EXPECT_THAT(Within(unwritten, {0, kHugePages}),
              ElementsAre(FieldsAre(0, 3), FieldsAre(5, kHugePages)));
  // A kernel that does not show holes did not watch them, and says so.
  EXPECT_TRUE(Within(unwritten, {2 * kHugePages + 1, 2 * kHugePages + 2}).empty());
}

INSTANTIATE_TEST_SUITE_P(Ways, WatchedMemoryTest, ::testing::Bool(), [](const auto& asks) {
  return asks.param ? "AsksForUnwritten" : "AsksForWritten";
});

}  // namespace
}  // namespace stasis::engine
