// Pages of checkpoints that are based on each other.
#include "engine/memory/restore_pages.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "unit/engine/files/scratch_directory.h"
#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kPage;

constexpr std::uint32_t kParent = 1, kPresent = 4;

struct PageRun {
  std::uint64_t page, count;
  std::uint32_t flags;
};

class IncrementalPagesTest : public ::testing::Test {
 protected:
  // A pagemap in `folder`, whose pages are filled with `letter`.
  void Write(const std::string& folder, const std::vector<PageRun>& runs, char letter) {
    image::PagemapHead head;
    head.set_pages_id(3);
    ImageFileBuilder pagemap("pagemap");
    EXPECT_THAT(pagemap.Add(head), IsOk());
    std::uint64_t pages = 0;
    for (const PageRun& run : runs) {
      image::PagemapEntry entry;
      entry.set_vaddr(run.page * kPage);
      entry.set_compat_nr_pages(static_cast<std::uint32_t>(run.count));
      entry.set_flags(run.flags);
      EXPECT_THAT(pagemap.Add(entry), IsOk());
      if (run.flags == kPresent) pages += run.count;
    }
    source_.files[folder + "pagemap-7.img"] = pagemap.bytes();
    source_.files[folder + "pages-3.img"] = std::string(pages * kPage, letter);
  }
  // The first letter of each page from `first` to `last`.
  std::string Letters(const PageSet& set, std::uint64_t first, std::uint64_t last) {
    std::string letters;
    const auto bytes = ReadPages(source_, set, {first * kPage, (last + 1) * kPage});
    EXPECT_THAT(bytes, IsOk());
    for (std::size_t at = 0; at < bytes->size(); at += kPage) {
      letters += static_cast<char>((*bytes)[at]);
    }
    return letters;
  }

  testing::MapSource source_;
};

TEST_F(IncrementalPagesTest, EachPageIsTheYoungestOne) {
  Write("parent/parent/", {{10, 4, kPresent}, {20, 2, kPresent}}, 'a');
  Write("parent/", {{10, 1, kParent}, {11, 1, kPresent}, {12, 2, kParent}, {20, 2, kPresent}}, 'b');
  Write("", {{10, 3, kParent}, {13, 1, kPresent}, {20, 2, kParent}}, 'c');
  const auto set = ReadPageSet(source_, "pagemap-7.img");
  ASSERT_THAT(set, IsOk());
  EXPECT_EQ(Letters(*set, 10, 13), "abac");
  EXPECT_EQ(Letters(*set, 20, 21), "bb");
  EXPECT_THAT(set->runs, ElementsAre(AddressRange{10 * kPage, 14 * kPage},
                                     AddressRange{20 * kPage, 22 * kPage}));
}

TEST_F(IncrementalPagesTest, AreWrittenWhereTheyBelong) {
  testing::FreshProgram program;
  const Result<std::uint64_t> start = program.process().remote->Call(
      "mmap", SYS_mmap, 0, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_THAT(start, IsOk());
  const std::uint64_t page = *start / kPage;
  Write("parent/", {{page, 4, kPresent}}, 'a');
  Write("", {{page, 1, kPresent}, {page + 1, 2, kParent}, {page + 3, 1, kPresent}}, 'b');
  const auto set = ReadPageSet(source_, "pagemap-7.img");
  ASSERT_THAT(set, IsOk());
  const PageTarget target = {.range = {*start, *start + 4 * kPage}, .address = *start};
  std::uint64_t written = 0;
  ASSERT_THAT(WritePages(source_, *set, std::span(&target, 1), program.pid(), -1,
                         [&written](std::uint64_t pages) { written += pages; }),
              IsOk());
  EXPECT_EQ(written, 4u);
  EXPECT_EQ(program.Read(*start, 4 * kPage),
            std::string(kPage, 'b') + std::string(2 * kPage, 'a') + std::string(kPage, 'b'));
}

TEST_F(IncrementalPagesTest, WhatTheParentLacksIsAnError) {
  Write("", {{10, 3, kParent}}, 'b');
  EXPECT_THAT(ReadPageSet(source_, "pagemap-7.img"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("parent/pagemap-7.img is missing")));
  Write("parent/", {{10, 1, kPresent}, {12, 1, kPresent}}, 'a');
  EXPECT_THAT(ReadPageSet(source_, "pagemap-7.img"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("not in the parent")));
  source_.files["parent/pages-3.img"].pop_back();
  Write("", {{10, 1, kParent}}, 'b');
  EXPECT_THAT(ReadPageSet(source_, "pagemap-7.img"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("parent/pages-3.img has")));
}

TEST_F(IncrementalPagesTest, OfAFolderAreBehindTheLinkThatCriuMakes) {
  const ScratchDirectory folder;
  std::filesystem::create_directory(folder / "old");
  std::filesystem::create_directory(folder / "new");
  std::filesystem::create_symlink("../old", folder / "new/parent");
  std::filesystem::create_symlink("../old", folder / "old/parent");  // its own parent
  Write("", {{10, 1, kParent}}, 'a');
  for (const std::string name : {"new", "old"}) {
    std::ofstream(folder / (name + "/pagemap-7.img")) << source_.files["pagemap-7.img"];
  }
  const auto source = OpenDirectorySource(folder / "new");
  ASSERT_THAT(source, IsOk());
  EXPECT_THAT(ReadPageSet(**source, "pagemap-7.img"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("more than 64")));
  Write("", {{10, 1, kPresent}}, 'a');
  std::ofstream(folder / "old/pagemap-7.img") << source_.files["pagemap-7.img"];
  std::ofstream(folder / "old/pages-3.img") << source_.files["pages-3.img"];
  EXPECT_THAT(ReadPageSet(**source, "pagemap-7.img"), IsOk());
}

}  // namespace
}  // namespace stasis::engine
