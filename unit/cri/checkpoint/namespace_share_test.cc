#include "cri/checkpoint/namespace_share.h"

#include <sys/mount.h>

#include <cerrno>
#include <filesystem>

#include "unit/cri/temporary_directory.h"
#include "unit/support/matchers.h"

namespace stasis::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsNull;

constexpr char kArchive[] = "unit/testdata/archives/containerd-2.1.9-criu-4.2.1-counter.tar";
constexpr std::uint64_t kMebibyte = std::uint64_t{1} << 20;

/// A disk of 40 MiB, of which a namespace may have 4 MiB.
class NamespaceShareTest : public ::testing::Test {
 protected:
  void SetUp() override {
    mounted_ = ::mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=40m") == 0;
    if (!mounted_) GTEST_SKIP() << "needs CAP_SYS_ADMIN, to mount a small disk";
  }
  void TearDown() override {
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
  }
  // Of container "counter" of pod p1 in namespace default, under this name.
  void Store(const std::string& name) { std::filesystem::copy_file(kArchive, folder_ + name); }

  TemporaryDirectory directory_;
  const std::string folder_ = directory_ / "";
  bool mounted_ = false;
  cri::NamespaceShare share_{10};
};

TEST_F(NamespaceShareTest, IsThatOfArchivesThatAreThereAndOfThoseUnderWay) {
  Store("checkpoint-p1_default-counter-1.tar");
  const auto one = share_.Begin(folder_, "default"), other = share_.Begin(folder_, "default");
  ASSERT_THAT(one, IsOk());
  ASSERT_THAT(other, IsOk());
  EXPECT_THAT((*one)->Takes(2 * kMebibyte), IsOk());
  const Status full = (*other)->Takes(kMebibyte * 19 / 10);
  EXPECT_EQ(ErrnoOf(full), EDQUOT);
  EXPECT_THAT(Message(full), HasSubstr("kubectl checkpoint list -n default"));
  EXPECT_EQ(ErrnoOf(share_.Begin(folder_, "default").status()), EDQUOT);
}

TEST_F(NamespaceShareTest, ComesBackWithWhatFailedOrWasDeleted) {
  for (int time = 0; time < 3; ++time) {
    const auto part = share_.Begin(folder_, "default");
    ASSERT_THAT(part, IsOk());
    ASSERT_THAT((*part)->Takes(3 * kMebibyte), IsOk());
    if (time == 1) (*part)->Done(3 * kMebibyte);  // and is no more when the next one begins
  }
}

TEST_F(NamespaceShareTest, AnArchiveThatIsDoneCountsForThoseUnderWay) {
  auto one = share_.Begin(folder_, "default"), other = share_.Begin(folder_, "default");
  ASSERT_THAT(one, IsOk());
  ASSERT_THAT(other, IsOk());
  ASSERT_THAT((*one)->Takes(3 * kMebibyte), IsOk());
  (*one)->Done(3 * kMebibyte);
  one->reset();
  EXPECT_EQ(ErrnoOf((*other)->Takes(2 * kMebibyte)), EDQUOT);
}

// What a file is called, and what is in it, have to agree.
TEST_F(NamespaceShareTest, ArchivesOfOthersDoNotCount) {
  for (int number = 0; number < 20; ++number) {
    Store("checkpoint-p1_shop-counter-" + std::to_string(number) + ".tar");
    std::filesystem::create_symlink("/etc/passwd", folder_ + "checkpoint-p1_default-counter-" +
                                                       std::to_string(number) + ".tar");
  }
  for (const char* const name : {"default", "shop"}) {
    const auto part = share_.Begin(folder_, name);
    ASSERT_THAT(part, IsOk());
    EXPECT_THAT((*part)->Takes(3 * kMebibyte), IsOk());
  }
}

TEST_F(NamespaceShareTest, AllOfTheDiskIsNoLimitAndNoNamespaceHasNone) {
  EXPECT_THAT(*cri::NamespaceShare(100).Begin(folder_, "default"), IsNull());
  EXPECT_THAT(*share_.Begin(folder_, ""), IsNull());
}

}  // namespace
}  // namespace stasis::testing
