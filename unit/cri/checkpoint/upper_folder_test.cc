#include "cri/checkpoint/upper_folder.h"

#include <gtest/gtest.h>

namespace stasis::cri {
namespace {

constexpr std::string_view kContainer =
    "612 543 0:57 / / ro,relatime - overlay overlay rw,lowerdir=/s/1/fs:/s/2/fs,"
    "upperdir=/s/a\\040b/fs,workdir=/s/3/work\n"
    "613 612 0:60 / /proc rw,nosuid - proc proc rw\n"
    "614 612 0:62 / /data rw - overlay overlay rw,lowerdir=/x,upperdir=/not/this,workdir=/y\n";

TEST(UpperFolderTest, IsThatOfTheRootMountUnescaped) {
  EXPECT_EQ(UpperFolderIn(kContainer), "/s/a b/fs");
}

TEST(UpperFolderTest, WhatIsMountedOverTheRootCounts) {
  EXPECT_EQ(UpperFolderIn(std::string(kContainer) + "700 612 0:70 / / rw - tmpfs tmpfs rw\n"),
            std::nullopt);
}

TEST(UpperFolderTest, ARootThatIsNoOverlayHasNone) {
  EXPECT_EQ(UpperFolderIn("1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"), std::nullopt);
  EXPECT_EQ(UpperFolderIn("1 0 0:5 / / ro - overlay overlay ro,lowerdir=/a:/b\n"), std::nullopt);
}

TEST(UpperFolderTest, LinesThatAreCutShortAreNoMounts) {
  EXPECT_EQ(UpperFolderIn("1 0 0:5 / / rw - overlay"), std::nullopt);
  EXPECT_EQ(UpperFolderIn("1 0 0:5 /\n\n"), std::nullopt);
  EXPECT_EQ(UpperFolderIn(""), std::nullopt);
}

}  // namespace
}  // namespace stasis::cri
