// Pages that are put into a process without its faults.
#include "engine/memory/page_installer.h"

#include <sys/mman.h>

#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::kPage;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

class PageInstallerTest : public ::testing::Test {
 protected:
  std::uint64_t Map(std::uint64_t pages) {
    const Result<std::uint64_t> start =
        program_.process().remote->Call("mmap", SYS_mmap, 0, pages * kPage, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_THAT(start, IsOk());
    return start.value_or(0);
  }

  void Fill(std::uint64_t address, char letter) {
    const std::string page(kPage, letter);
    EXPECT_THAT(WriteMemory(program_.pid(), address, std::as_bytes(std::span(page))), IsOk());
  }

  testing::FreshProgram program_;
};

TEST_F(PageInstallerTest, PutsPagesWhereNoneAreAndStopsAtOneThatIs) {
  const std::uint64_t start = Map(4);
  Fill(start + 2 * kPage, 'p');
  const AddressRange area = {start, start + 4 * kPage};
  const std::string letters = std::string(kPage, 'a') + std::string(3 * kPage, 'b');
  {
    const Result<PageInstaller> installer =
        PageInstaller::Make(program_.process(), std::span(&area, 1));
    ASSERT_THAT(installer, IsOk());
    const auto bytes = std::as_bytes(std::span(letters));
    EXPECT_EQ(installer->Install(start, bytes).value_or(0), 2 * kPage);
    EXPECT_EQ(installer->Install(start + 3 * kPage, bytes.last(kPage)).value_or(0), kPage);
  }
  EXPECT_EQ(program_.Read(start, 4 * kPage),
            letters.substr(0, 2 * kPage) + std::string(kPage, 'p') + std::string(kPage, 'b'));
}

// Written through WritePages a page that is there already is replaced.
TEST_F(PageInstallerTest, ASetIsWrittenOverWhatIsThere) {
  const std::uint64_t start = Map(4);
  Fill(start + kPage, 'p');
  const AddressRange area = {start, start + 4 * kPage};
  testing::MapSource source;
  source.files["pages-1.img"] = std::string(4 * kPage, 'n');
  PageSet set = {.files = {"pages-1.img"}, .extents = {}, .runs = {}};
  set.Add({.range = area, .file = 0, .offset = 0, .lazy = false});
  const PageTarget target = {.range = area, .address = start, .way = PageTarget::Way::kInstall};
  const Result<PageInstaller> installer =
      PageInstaller::Make(program_.process(), std::span(&area, 1));
  ASSERT_THAT(installer, IsOk());
  ASSERT_THAT(WritePages(
                  source, set, std::span(&target, 1), program_.pid(), -1, [](std::uint64_t) {},
                  &*installer),
              IsOk());
  EXPECT_EQ(program_.Read(start, 4 * kPage), std::string(4 * kPage, 'n'));
}

AreaImage Area(std::uint64_t start_mib, std::uint64_t end_mib) {
  AreaImage area;
  area.range = {start_mib * kMiB, end_mib * kMiB};
  area.prot = PROT_READ | PROT_WRITE;
  return area;
}

TEST(InstallableAreasTest, ArePlainMemoryWithMuchInIt) {
  MemoryLayout layout;
  for (std::uint64_t at = 0; at < 8; ++at) layout.areas.push_back(Area(4 * at, 4 * at + 4));
  layout.areas[1].prot = PROT_READ;
  layout.areas[2].advice = std::uint64_t{1} << MADV_HUGEPAGE;
  layout.areas[3].map_flags = MAP_GROWSDOWN;
  layout.areas[4].kind = AreaImage::Kind::kPrivateFile;
  layout.areas[5].droppable = true;
  PageSet pages;
  pages.Add({.range = {0, 28 * kMiB}, .file = 0, .offset = 0, .lazy = false});
  pages.Add({.range = {28 * kMiB + kPage, 28 * kMiB + 2 * kPage},
             .file = 0,
             .offset = 28 * kMiB,
             .lazy = false});
  const std::vector<AddressRange> inherited = {layout.areas[6].range};
  EXPECT_THAT(InstallableAreas(layout, pages, inherited, true), ElementsAre(layout.areas[0].range));
  pages = {};
  pages.Add({.range = {0, kMiB}, .file = 0, .offset = 0, .lazy = false});
  EXPECT_THAT(InstallableAreas(layout, pages, inherited, true), IsEmpty());
}

}  // namespace
}  // namespace stasis::engine
