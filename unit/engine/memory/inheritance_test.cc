// What a fork keeps of its parent's memory.
#include "engine/memory/inheritance.h"

#include <sys/mman.h>

#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint64_t kPage = 4096;

AreaImage Private(std::uint64_t first, std::uint64_t pages) {
  return {.range = {first * kPage, (first + pages) * kPage},
          .prot = PROT_READ | PROT_WRITE,
          .map_flags = MAP_PRIVATE | MAP_ANONYMOUS};
}

PageSet Pages(std::vector<AddressRange> runs) {
  for (AddressRange& run : runs) run = {run.start * kPage, run.end * kPage};
  PageSet set;
  for (const AddressRange& run : runs) set.Add({.range = run});
  return set;
}

TEST(InheritanceTest, AreasThatAreAlikeAreKeptWithTheParentsPages) {
  const MemoryLayout parent = {.areas = {Private(1, 4), Private(8, 4), Private(16, 4)}};
  const MemoryLayout own = {.areas = {Private(1, 4), Private(8, 5), Private(16, 4)}};
  const Inheritance inherited(parent, Pages({{2, 10}, {18, 19}}), own);
  EXPECT_THAT(inherited.areas(), ElementsAre(own.areas[0].range, own.areas[2].range));
  EXPECT_THAT(inherited.pages(), ElementsAre(AddressRange{2 * kPage, 5 * kPage},
                                             AddressRange{18 * kPage, 19 * kPage}));
  EXPECT_TRUE(inherited.Has(own.areas[0]));
  EXPECT_FALSE(inherited.Has(own.areas[1]));
  EXPECT_THAT(inherited.PagesIn(own.areas[1].range), IsEmpty());
}

TEST(InheritanceTest, WhatForkChangesIsNotKept) {
  AreaImage wiped = Private(1, 1), shared = Private(3, 1), read_only = Private(5, 1);
  wiped.advice = std::uint64_t{1} << MADV_WIPEONFORK;
  shared.kind = AreaImage::Kind::kSharedAnonymous;
  const MemoryLayout parent = {.areas = {wiped, shared, read_only, Private(7, 4)},
                               .guards = {{8 * kPage, 9 * kPage}}};
  MemoryLayout own = parent;
  own.guards.clear();
  own.areas[2].prot = PROT_READ;
  EXPECT_THAT(Inheritance(parent, Pages({{1, 20}}), own).areas(), IsEmpty());
}

TEST(InheritanceTest, PagesThatTheForkLacksGo) {
  testing::FreshProgram program;
  RestoredProcess& process = program.process();
  const Result<std::uint64_t> start = process.remote->Call(
      "mmap", SYS_mmap, 0, 3 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_THAT(start, ::stasis::testing::IsOk());
  const std::uint64_t page = *start / kPage;
  const std::string content(3 * kPage, 'p');
  ASSERT_THAT(WriteMemory(program.pid(), *start, std::as_bytes(std::span(content))),
              ::stasis::testing::IsOk());
  const MemoryLayout layout = {.areas = {Private(page, 3)}};
  const Inheritance inherited(layout, Pages({{page, page + 3}}), layout);
  ASSERT_THAT(DropPages(process, inherited, Pages({{page, page + 1}, {page + 2, page + 3}})),
              ::stasis::testing::IsOk());
  EXPECT_EQ(program.Read(*start, 3 * kPage),
            std::string(kPage, 'p') + std::string(kPage, '\0') + std::string(kPage, 'p'));
}

}  // namespace
}  // namespace stasis::engine
