#include "cri/checkpoint/free_space.h"

#include <fcntl.h>
#include <sys/mount.h>

#include <fstream>

#include "unit/cri/temporary_directory.h"
#include "unit/support/matchers.h"
#include "unit/support/memory_images.h"

namespace stasis::testing {
namespace {

constexpr std::size_t kMebibyte = std::size_t{1} << 20;

/// A disk of 40 MiB.
class FreeSpaceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    mounted_ = ::mount("tmpfs", (directory_ / "").c_str(), "tmpfs", 0, "size=40m") == 0;
    if (!mounted_) GTEST_SKIP() << "needs CAP_SYS_ADMIN, to mount a small disk";
  }
  void TearDown() override {
    if (mounted_) ::umount2((directory_ / "").c_str(), MNT_DETACH);
  }
  void Fill(std::size_t bytes) {
    std::ofstream(directory_ / "file", std::ios::app) << std::string(bytes, 'x') << std::flush;
  }

  TemporaryDirectory directory_;
  bool mounted_ = false;
};

TEST_F(FreeSpaceTest, IsLeftOnTheDisk) {
  const cri::FreeSpace space(directory_ / "", 50);
  Fill(10 * kMebibyte);
  EXPECT_THAT(space.Check(), IsOk());
  Fill(15 * kMebibyte);
  EXPECT_THAT(space.Check(), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_EQ(ErrnoOf(space.Check()), ENOSPC);
  EXPECT_THAT(cri::FreeSpace(directory_ / "", 0).Check(), IsOk());
}

TEST_F(FreeSpaceTest, IsKeptWhileImagesAreWritten) {
  cri::FreeSpace space(directory_ / "", 50);
  MemoryImages images;
  cri::SpaceKeepingSink sink(images, space);
  const auto stream = sink.Open("pages-1.img", 64 * kMebibyte);
  ASSERT_THAT(stream, IsOk());
  const std::vector<std::byte> piece(kMebibyte);
  EXPECT_THAT((*stream)->Write(piece), IsOk());
  Fill(25 * kMebibyte);
  Status status;
  for (int written = 0; status.ok() && written < 16; ++written) status = (*stream)->Write(piece);
  EXPECT_THAT(status, StatusIs(StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace stasis::testing
