#include "cri/restore/records.h"

#include <fstream>

#include "unit/cri/temporary_directory.h"
#include "unit/support/matchers.h"

namespace stasis::cri {
namespace {

using testing::IsOk;
using testing::StatusIs;

RestoredContainer Sample(const std::string& id) {
  RestoredContainer record;
  record.id = id;
  record.phase = RestorePhase::kRestored;
  record.sandbox_id = "sandbox";
  record.name = "app";
  record.attempt = 3;
  record.image = "sha256:check";
  record.args = {"a", "b c"};
  record.checkpoint = {"/view", "overlayfs", "key"};
  record.clocks_may_go_back = true;
  record.lazy_pages = true;
  return record;
}

TEST(RecordsTest, SurviveARestart) {
  testing::TemporaryDirectory directory;
  {
    auto records = Records::Open(directory / "r");
    ASSERT_THAT(records, IsOk());
    ASSERT_THAT((*records)->Put(Sample("abc123")), IsOk());
  }
  auto records = Records::Open(directory / "r");
  ASSERT_THAT(records, IsOk());
  const auto found = (*records)->FindByName("sandbox", "app", 3);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->phase, RestorePhase::kRestored);
  EXPECT_EQ(found->args, (std::vector<std::string>{"a", "b c"}));
  EXPECT_EQ(found->checkpoint.snapshot_key, "key");
  EXPECT_TRUE(found->clocks_may_go_back);
  EXPECT_TRUE(found->lazy_pages);
}

TEST(RecordsTest, AreFoundByAnUnambiguousBeginning) {
  testing::TemporaryDirectory directory;
  auto records = Records::Open(directory / "r");
  ASSERT_THAT((*records)->Put(Sample("abc1")), IsOk());
  ASSERT_THAT((*records)->Put(Sample("abc12")), IsOk());
  EXPECT_FALSE((*records)->Find("abc").has_value());
  EXPECT_EQ((*records)->Find("abc1")->id, "abc1");
  EXPECT_EQ((*records)->Find("abc12")->id, "abc12");
  EXPECT_FALSE((*records)->Find("").has_value());
}

TEST(RecordsTest, AnIdThatIsNoFileNameIsRefused) {
  testing::TemporaryDirectory directory;
  auto records = Records::Open(directory / "r");
  EXPECT_FALSE((*records)->Put(Sample("../escape")).ok());
  EXPECT_FALSE(std::filesystem::exists(directory / "escape.json"));
}

TEST(RecordsTest, ABrokenFileIsAnErrorThatNamesIt) {
  testing::TemporaryDirectory directory;
  {
    ASSERT_THAT(Records::Open(directory / "r"), IsOk());
  }
  std::ofstream(directory / "r/abc.json") << "{";
  EXPECT_THAT(Records::Open(directory / "r"),
              StatusIs(StatusCode::kInvalidArgument, ::testing::HasSubstr("r/abc.json")));
}

TEST(RecordsTest, AFileThatACrashLeftHalfWrittenIsNoRecord) {
  testing::TemporaryDirectory directory;
  {
    ASSERT_THAT(Records::Open(directory / "r"), IsOk());
  }
  std::ofstream(directory / "r/abc.new") << "{";
  auto records = Records::Open(directory / "r");
  ASSERT_THAT(records, IsOk());
  EXPECT_TRUE((*records)->empty());
}

}  // namespace
}  // namespace stasis::cri
