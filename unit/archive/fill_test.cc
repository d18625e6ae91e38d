// Members that are read in pieces by the writer's threads.
#include <atomic>

#include "archive/member_digest.h"
#include "archive/sha256.h"
#include "unit/archive/archives.h"

namespace stasis::archive {
namespace {

using stasis::testing::IsOk;
using stasis::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::byte ByteAt(std::uint64_t offset) {
  return static_cast<std::byte>(offset * 2654435761U >> 16 ^ offset);
}

Status ReadBytes(std::uint64_t offset, std::span<std::byte> target) {
  for (std::byte& byte : target) byte = ByteAt(offset++);
  return OkStatus();
}

struct Way {
  std::string name;
  std::optional<Compression> compression;
  bool hurried;
};

class FillTest : public ::testing::TestWithParam<Way> {
 protected:
  const TempFolder folder_;
};

TEST_P(FillTest, IsWhatWasReadInItsOrder) {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  const auto writer = ArchiveWriter::Create(folder_ / "a.tar", GetParam().compression);
  ASSERT_THAT(writer, IsOk());
  (*writer)->Hurry(GetParam().hurried);
  const std::vector<std::uint64_t> sizes = {0, 1, kMiB - 1, kMiB, 7 * kMiB + 4097};
  for (const std::uint64_t size : sizes) {
    const auto stream = (*writer)->images().Open("pages-" + std::to_string(size), size + 1);
    ASSERT_THAT(stream, IsOk());
    const std::byte first[] = {std::byte{7}};
    ASSERT_THAT((*stream)->Write(first), IsOk());
    std::uint64_t passed_on = 0;
    ASSERT_THAT((*stream)->Fill(size, ReadBytes,
                                [&](std::uint64_t bytes) {
                                  passed_on += bytes;
                                  return OkStatus();
                                }),
                IsOk());
    EXPECT_EQ(passed_on, size);
    ASSERT_THAT((*stream)->Finish(), IsOk());
  }
  (*writer)->Hurry(false);
  for (const auto* const name : {"config.dump", "spec.dump", "checkpoint/inventory.img"}) {
    ASSERT_THAT((*writer)->AddMember(name, "{}"), IsOk());
  }
  ASSERT_THAT((*writer)->Commit({}, {}), IsOk());

  const auto archive = Archive::Open(folder_ / "a.tar");
  ASSERT_THAT(archive, IsOk());
  for (const std::uint64_t size : sizes) {
    std::string wanted(size + 1, '\7');
    ReadBytes(0, std::as_writable_bytes(std::span(wanted)).subspan(1)).IgnoreError();
    EXPECT_TRUE(*(*archive)->images().Get("pages-" + std::to_string(size)) == wanted) << size;
  }
  EXPECT_THAT(Verify(**archive)->problems, IsEmpty());
}

TEST_P(FillTest, LeavesNothingOfWhatCannotBeRead) {
  for (const bool read_fails : {true, false}) {
    const auto writer = ArchiveWriter::Create(folder_ / "a.tar", GetParam().compression);
    ASSERT_THAT(writer, IsOk());
    (*writer)->Hurry(GetParam().hurried);
    constexpr std::uint64_t kSize = std::uint64_t{20} << 20;
    std::atomic<bool> is_over = false;  // nobody may read any more
    {
      const auto stream = (*writer)->images().Open("pages-1.img", kSize);
      ASSERT_THAT(stream, IsOk());
      const auto read = [&](std::uint64_t offset, std::span<std::byte> target) -> Status {
        EXPECT_FALSE(is_over);
        if (read_fails && offset > kSize / 2) return NotFound("the page");
        return ReadBytes(offset, target);
      };
      const auto passed_on = [&](std::uint64_t) {
        return read_fails ? OkStatus() : Cancelled("nobody wants it");
      };
      const Status filled = (*stream)->Fill(kSize, read, passed_on);
      is_over = true;
      EXPECT_THAT(filled, StatusIs(read_fails ? StatusCode::kNotFound : StatusCode::kCancelled));
    }
    EXPECT_FALSE((*writer)->Commit({}, {}).ok());
  }
  EXPECT_THAT(folder_.Names(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(All, FillTest,
                         ::testing::Values(Way{"Plain", std::nullopt, false},
                                           Way{"PlainHurried", std::nullopt, true},
                                           Way{"Compressed", Compression{.level = 1}, false},
                                           Way{"CompressedHurried", Compression{.level = 1}, true}),
                         [](const auto& way) { return way.param.name; });

TEST(MemberDigestTest, IsThatOfXxh128sum) {
  MemberDigest digest;
  EXPECT_EQ(digest.Finish(), "99aa06d3014798d86001c324468d497f");
  const std::string text = "checkpoint";
  digest.Update(std::as_bytes(std::span(text)).first(3));
  digest.Update(std::as_bytes(std::span(text)).subspan(3));
  EXPECT_EQ(digest.Finish(), "019d7fae7f707e5802ef56a7e542ab2b");
}

TEST(MemberDigestTest, OfFormat1WasSha256) {
  const TempFolder folder;
  const auto manifest = [](std::string_view of_config) {
    std::string members;
    for (const auto& [name, content] : {std::pair("config.dump", of_config),
                                        {"spec.dump", "{}"},
                                        {"checkpoint/inventory.img", "x"}}) {
      members += std::string(members.empty() ? "" : ",") + R"({"name":")" + name + R"(","size":)" +
                 std::to_string(std::string_view(content).size()) + R"(,"sha256":")" +
                 Sha256Of(content) + "\"}";
    }
    return TarMember("stasis-manifest.json", R"({"formatVersion":1,"members":[)" + members + "]}");
  };
  const std::string content = TarMember("config.dump", "{}") + TarMember("spec.dump", "{}") +
                              TarMember("checkpoint/inventory.img", "x");
  Spill(folder / "old.tar", content + manifest("{}") + TarEnd());
  EXPECT_THAT(Verify(**Archive::Open(folder / "old.tar"))->problems, IsEmpty());
  Spill(folder / "altered.tar", content + manifest("[]") + TarEnd());
  EXPECT_THAT(Verify(**Archive::Open(folder / "altered.tar"))->problems,
              ::testing::ElementsAre(HasSubstr("config.dump: its content was altered")));
}

}  // namespace
}  // namespace stasis::archive
