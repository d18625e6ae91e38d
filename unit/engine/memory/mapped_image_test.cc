#include "engine/memory/mapped_image.h"

#include <unistd.h>

#include <fstream>

#include "engine/memory/page_installer.h"
#include "unit/engine/files/scratch_directory.h"
#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;
using testing::kPage;

constexpr std::size_t kBytes = std::size_t{2} << 20;

class MappedImageTest : public ::testing::Test {
 protected:
  MappedImageTest() {
    for (std::size_t at = 0; at < kBytes; at += kPage) {
      content_ += std::string(kPage, static_cast<char>('a' + at / kPage % 26));
    }
    std::ofstream(folder_ / "pages-1.img", std::ios::binary) << content_;
    std::ofstream(folder_ / "pages-2.img") << "few";
    source_ = *OpenDirectorySource(folder_ / "");
  }

  std::string Text(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  const ScratchDirectory folder_;
  std::string content_;
  std::unique_ptr<ImageSource> source_;
};

TEST_F(MappedImageTest, GivesPagesAgainAfterTheyWereForgotten) {
  const MappedImage image(*source_, "pages-1.img");
  for (int round = 0; round < 2; ++round) {
    const auto part = image.Get(3 * kPage, 20 * kPage);
    EXPECT_EQ(Text(part), content_.substr(3 * kPage, 20 * kPage));
    image.Forget(part);
  }
}

TEST_F(MappedImageTest, GivesNothingElse) {
  const MappedImage image(*source_, "pages-1.img");
  EXPECT_TRUE(image.Get(1, 16 * kPage).empty());
  EXPECT_TRUE(image.Get(kBytes, 16 * kPage).empty());
  EXPECT_TRUE(image.Get(kBytes - 15 * kPage, 16 * kPage).empty());
  EXPECT_TRUE(image.Get(-kPage, 16 * kPage).empty());
  EXPECT_TRUE(image.Get(0, 15 * kPage).empty());  // little is read sooner
  EXPECT_TRUE(MappedImage(*source_, "pages-2.img").Get(0, 3).empty());
  EXPECT_TRUE(MappedImage(*source_, "pages-3.img").Get(0, kPage).empty());
  ASSERT_EQ(::truncate((folder_ / "pages-1.img").c_str(), kPage), 0);
  EXPECT_TRUE(image.Get(kPage, 16 * kPage).empty());
}

// A system call that meets the end of what was longer says so; nobody is killed.
TEST_F(MappedImageTest, AFileThatIsCutOffIsAnError) {
  testing::FreshProgram program;
  const Result<std::uint64_t> start = program.process().remote->Call(
      "mmap", SYS_mmap, 0, 16 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_THAT(start, IsOk());
  const AddressRange area = {*start, *start + 16 * kPage};
  const auto installer = PageInstaller::Make(program.process(), std::span(&area, 1));
  ASSERT_THAT(installer, IsOk());
  const MappedImage image(*source_, "pages-1.img");
  const auto part = image.Get(0, 16 * kPage);
  ASSERT_EQ(::truncate((folder_ / "pages-1.img").c_str(), kPage), 0);
  EXPECT_EQ(installer->Install(*start, part.first(kPage)).value_or(0), kPage);
  EXPECT_THAT(installer->Install(*start + kPage, part.subspan(kPage)),
              StatusIs(StatusCode::kInternal, HasSubstr("Bad address")));
}

}  // namespace
}  // namespace stasis::engine
