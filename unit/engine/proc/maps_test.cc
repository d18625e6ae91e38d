#include "engine/proc/maps.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "engine/base/unique_fd.h"
#include "unit/engine/proc/testdata.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

const Vma* Find(const std::vector<Vma>& vmas, std::string_view path) {
  const auto found = std::ranges::find(vmas, path, &Vma::path);
  return found == vmas.end() ? nullptr : &*found;
}

TEST(MapsTest, ReadsEveryKindOfLine) {
  const auto vmas = ParseMaps(ProcText("maps"));
  ASSERT_THAT(vmas, IsOk());
  ASSERT_EQ(vmas->size(), 25u);
  const Vma& first = vmas->front();
  EXPECT_EQ(first.path, "/usr/bin/target");
  EXPECT_EQ(first.size(), 4096u);
  EXPECT_EQ(first.prot, std::uint32_t{PROT_READ});
  EXPECT_EQ(first.dev_major, 0xfeu);
  EXPECT_EQ((*vmas)[2].offset, 0x2000u);
  const Vma* const odd = Find(*vmas, "/var/odd\nname (deleted) (deleted)");
  ASSERT_NE(odd, nullptr);
  EXPECT_TRUE(odd->shared);
  ASSERT_NE(Find(*vmas, "[stack]"), nullptr);
  EXPECT_EQ(vmas->back().end, 0xffffffffff601000u);
  ASSERT_NE(Find(*vmas, ""), nullptr);
}

TEST(MapsTest, KeepsABackslashThatIsNoNewline) {
  const auto vmas = ParseMaps("1000-2000 rw-p 00000000 00:00 7   /a\\134b \n");
  ASSERT_THAT(vmas, IsOk());
  EXPECT_EQ(vmas->front().path, "/a\\134b ");
}

TEST(SmapsTest, AddsFlagsAndPageSizeToTheSameAreas) {
  const auto vmas = ParseSmaps(ProcText("smaps"));
  ASSERT_THAT(vmas, IsOk());
  const Vma* const stack = Find(*vmas, "[stack]");
  ASSERT_NE(stack, nullptr);
  EXPECT_TRUE(stack->Has("gd"));
  EXPECT_TRUE(stack->Has("wr"));
  EXPECT_FALSE(stack->Has("ex"));
  EXPECT_EQ(stack->kernel_page_size, 4096u);
  const Vma* const vdso = Find(*vmas, "[vdso]");
  ASSERT_NE(vdso, nullptr);
  EXPECT_TRUE(vdso->Has("ex"));
}

TEST(SmapsTest, ReadsThisProcess) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, "/proc/self/smaps");
  ASSERT_THAT(text, IsOk());
  const auto vmas = ParseSmaps(*text);
  ASSERT_THAT(vmas, IsOk());
  const auto here = reinterpret_cast<std::uintptr_t>(&Find);
  const auto code = std::ranges::find_if(
      *vmas, [&](const Vma& vma) { return vma.start <= here && here < vma.end; });
  ASSERT_NE(code, vmas->end());
  EXPECT_EQ(code->prot, std::uint32_t{PROT_READ | PROT_EXEC});
  EXPECT_TRUE(code->Has("ex"));
}

TEST(SmapsTest, ReadsInPiecesWhatItReadsAtOnce) {
  std::vector<void*> areas;
  for (int i = 0; i < 200;
       ++i) {  // more text than there is in one piece, whose lines are cut anywhere
    const int prot = i % 2 == 0 ? PROT_READ : PROT_NONE;
    areas.push_back(::mmap(nullptr, 8192, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  const UniqueFd proc(::open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC));
  const auto vmas = ReadSmaps(proc.get());
  ASSERT_THAT(vmas, IsOk());
  for (void* const area : areas) {
    const auto at = reinterpret_cast<std::uintptr_t>(area);
    const auto found = std::ranges::find_if(
        *vmas, [at](const Vma& vma) { return vma.start <= at && at < vma.end; });
    ASSERT_NE(found, vmas->end());
    EXPECT_EQ(found->Has("rd"), found->prot == PROT_READ);
    EXPECT_EQ(found->kernel_page_size, 4096u);
    ::munmap(area, 8192);
  }
}

TEST(MapsTest, RefusesWhatIsNoArea) {
  EXPECT_THAT(ParseMaps("2000-1000 rw-p 0 00:00 0\n"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("2000-1000")));
  EXPECT_THAT(ParseMaps("1000-2000 rw-p\n"), StatusIs(StatusCode::kDataLoss));
}

}  // namespace
}  // namespace stasis::engine
