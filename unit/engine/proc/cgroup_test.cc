#include "engine/proc/cgroup.h"

#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

TEST(CgroupTest, ReadsBothVersionsInTheOrderOfTheirNames) {
  const auto set = ParseCgroups("12:cpu,cpuacct:/a\n3:name=systemd:/b:c\n0::/user.slice\n");
  ASSERT_THAT(set, IsOk());
  EXPECT_EQ(*set,
            (CgroupSet{{"", "/user.slice"}, {"cpu,cpuacct", "/a"}, {"name=systemd", "/b:c"}}));
  EXPECT_EQ(*PathIn(*set, "cpu,cpuacct"), "/a");
  EXPECT_EQ(PathIn(*set, "cpu"), nullptr);
}

TEST(CgroupTest, AnotherFormIsNotGuessed) {
  EXPECT_THAT(ParseCgroups("nonsense\n"), StatusIs(StatusCode::kDataLoss));
}

TEST(CgroupTest, BelowIsWholeNamesOnly) {
  EXPECT_STREQ(Below("/a", "/a/b"), "/b");
  EXPECT_STREQ(Below("/a", "/a"), "");
  EXPECT_STREQ(Below("/", "/a"), "/a");
  EXPECT_STREQ(Below("/", "/"), "");
  EXPECT_EQ(Below("/a", "/ab"), nullptr);
}

}  // namespace
}  // namespace stasis::engine
