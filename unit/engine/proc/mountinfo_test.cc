#include "engine/proc/mountinfo.h"

#include <algorithm>

#include "unit/engine/proc/testdata.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(MountinfoTest, UndoesEscapesAndTakesAnEmptySource) {
  const auto mounts = ParseMountinfo(ProcText("mountinfo"));
  ASSERT_THAT(mounts, IsOk());
  ASSERT_GE(mounts->size(), 3u);
  const Mount& odd = (*mounts)[mounts->size() - 2];
  EXPECT_EQ(odd.mountpoint, "/var/a b\\c");
  EXPECT_EQ(odd.source, "odd source#");
  EXPECT_EQ(odd.fs_type, "tmpfs");
  EXPECT_THAT(odd.propagation, IsEmpty());
  const Mount& shared = mounts->back();
  EXPECT_THAT(shared.propagation, ElementsAre("shared:1"));
  EXPECT_EQ(shared.source, "");
  EXPECT_EQ(shared.super_options, "rw");
}

TEST(MountinfoTest, ReadsTheRootMount) {
  const auto mounts = ParseMountinfo(ProcText("mountinfo"));
  ASSERT_THAT(mounts, IsOk());
  const auto root = std::ranges::find(*mounts, "/", &Mount::mountpoint);
  ASSERT_NE(root, mounts->end());
  EXPECT_EQ(root->root, "/");
  EXPECT_EQ(root->dev_major, 254u);
  EXPECT_EQ(root->fs_type, "ext4");
  EXPECT_EQ(root->source, "/dev/vda");
  EXPECT_THAT(root->options, HasSubstr("rw"));
}

TEST(MountinfoTest, ReadsTheRunningKernel) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, "/proc/self/mountinfo");
  ASSERT_THAT(text, IsOk());
  EXPECT_THAT(ParseMountinfo(*text), IsOk());
}

TEST(MountinfoTest, SaysWhichLineIsStrange) {
  EXPECT_THAT(ParseMountinfo("1 2 0:1 / /x rw shared:1\n"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("/x")));
}

}  // namespace
}  // namespace stasis::engine
