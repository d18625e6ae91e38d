#include "archive/archive.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>

#include "unit/archive/archives.h"

namespace stasis::archive {
namespace {

using stasis::testing::IsOk;
using stasis::testing::StatusIs;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kContainerd[] = "unit/testdata/archives/containerd-2.1.9-criu-4.2.1-counter.tar";
constexpr char kPodman[] = "unit/testdata/archives/podman-5.8.6-criu-4.2.1-counter.tar";

Status OpenStatus(const std::string& tar) {
  const TempFolder folder;
  Spill(folder / "a.tar", tar);
  return Archive::Open(folder / "a.tar").status();
}

TEST(ArchiveTest, ReadsArchivesOfContainerdAndPodman) {
  for (const char* const path : {kContainerd, kPodman}) {
    const auto archive = Archive::Open(path);
    ASSERT_THAT(archive, IsOk()) << path;
    EXPECT_EQ((*archive)->images().Get("inventory.img")->size(), 86u);
    const Result<Verification> verified = Verify(**archive);
    ASSERT_THAT(verified, IsOk());
    EXPECT_FALSE(verified->has_manifest);
    EXPECT_THAT(verified->problems, IsEmpty());
    EXPECT_THAT(verified->notes, Contains(HasSubstr("only the structure was checked")));
  }
}

TEST(ArchiveTest, ReadsAPiecesOfPagesAtRandom) {
  const auto archive = Archive::Open(kContainerd);
  ASSERT_THAT(archive, IsOk());
  const std::string whole = *(*archive)->images().Get("pages-1.img");
  std::string piece(4096, '\0');
  const auto bytes = std::as_writable_bytes(std::span(piece.data(), piece.size()));
  ASSERT_THAT((*archive)->images().ReadAt("pages-1.img", 8192, bytes), IsOk());
  EXPECT_EQ(piece, whole.substr(8192, 4096));
  EXPECT_THAT((*archive)->images().ReadAt("pages-1.img", whole.size() - 1, bytes),
              StatusIs(StatusCode::kDataLoss));
  EXPECT_THAT((*archive)->images().ReadAt("pages-1.img", ~std::uint64_t{0}, bytes),
              StatusIs(StatusCode::kDataLoss));
}

TEST(ArchiveTest, ReadsAnArchiveUnpackedIntoAFolder) {
  const TempFolder folder;
  ASSERT_EQ(std::system(("tar -xf " + std::string(kContainerd) + " -C " + folder.path()).c_str()),
            0);
  const auto archive = Archive::Open(folder.path());
  ASSERT_THAT(archive, IsOk());
  EXPECT_EQ(*(*archive)->images().Get("pages-2.img"),
            *(*Archive::Open(kContainerd))->images().Get("pages-2.img"));
  EXPECT_THAT((*archive)->Get("container.log"), IsOk());
  EXPECT_THAT((*archive)->Get("../etc/passwd"), StatusIs(StatusCode::kNotFound));
}

TEST(ArchiveTest, RefusesALinkInAFolder) {
  const TempFolder folder;
  std::filesystem::create_symlink("/etc/passwd", folder / "config.dump");
  EXPECT_THAT(Archive::Open(folder.path()), StatusIs(StatusCode::kInvalidArgument));
}

TEST(ArchiveTest, ReadsCompressedArchives) {
  const TempFolder folder;
  for (const char* const tool : {"gzip", "zstd -q", "xz", "bzip2"}) {
    const std::string packed = folder / "a.tar.packed";
    if (std::system((std::string(tool) + " -c " + kContainerd + " >" + packed).c_str()) != 0) {
      ADD_FAILURE() << tool << " is not installed";
      continue;
    }
    const auto archive = Archive::Open(packed, {.scratch_folder = folder.path()});
    ASSERT_THAT(archive, IsOk()) << tool;
    EXPECT_THAT((*archive)->Get("config.dump"), IsOk());
  }
  EXPECT_THAT(folder.Names(), ElementsAre("a.tar.packed"));
}

TEST(ArchiveTest, RefusesACompressionBomb) {
  const TempFolder folder;
  ASSERT_EQ(std::system(("head -c 64M /dev/zero | gzip >" + (folder / "bomb")).c_str()), 0);
  EXPECT_THAT(Archive::Open(folder / "bomb", {.max_bytes = 1 << 20}),
              StatusIs(StatusCode::kResourceExhausted));
}

TEST(ArchiveTest, SaysWhereAnArchiveIsCutShort) {
  const std::string whole = Slurp(kContainerd);
  const std::size_t end = whole.rfind("status.dump") + 1024;  // the end mark follows
  const TempFolder folder;
  for (const std::size_t length : {std::size_t{1}, std::size_t{700}, whole.size() / 2, end}) {
    Spill(folder / "a.tar", whole.substr(0, length));
    const auto archive = Archive::Open(folder / "a.tar");
    EXPECT_THAT(archive, StatusIs(StatusCode::kDataLoss)) << length;
  }
  EXPECT_THAT(OpenStatus(""), StatusIs(StatusCode::kDataLoss));
}

TEST(ArchiveTest, RefusesWhatIsNoTar) {
  EXPECT_THAT(OpenStatus(std::string(4096, 'x')), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Archive::Open("/dev/null"), StatusIs(StatusCode::kInvalidArgument));
}

TEST(ArchiveTest, RefusesDamagedHeaders) {
  std::string tar = TarMember("a", "1") + TarMember("b", "2") + TarEnd();
  tar[1024] = 'c';  // the second name
  EXPECT_THAT(OpenStatus(tar), StatusIs(StatusCode::kDataLoss, HasSubstr("byte 1024")));
}

TEST(ArchiveTest, RefusesNamesThatClimbOut) {
  for (const char* const name :
       {"../etc/passwd", "/etc/passwd", "checkpoint/../../x", "a//b", "..", "a/.", "a\nb"}) {
    EXPECT_THAT(OpenStatus(TarMember(name, "x") + TarEnd()), StatusIs(StatusCode::kInvalidArgument))
        << name;
    EXPECT_THAT(OpenStatus(TarMember("pax", PaxRecord("path", name), kTarPax) +
                           TarMember("fine", "x") + TarEnd()),
                StatusIs(StatusCode::kInvalidArgument))
        << name << " in a pax header";
  }
}

TEST(ArchiveTest, RefusesLinksDevicesAndFifos) {
  for (const char type : {'1', '2', '3', '4', '6', 'S', 'K', '9'}) {
    EXPECT_THAT(OpenStatus(TarMember("checkpoint/core-1.img", "", type) + TarEnd()),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("core-1.img")))
        << type;
  }
}

TEST(ArchiveTest, RefusesAMemberThatIsThereTwice) {
  EXPECT_THAT(OpenStatus(TarMember("a", "1") + TarMember("./a", "2") + TarEnd()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("twice")));
}

TEST(ArchiveTest, RefusesAbsurdSizes) {
  for (const std::uint64_t size :
       {std::uint64_t{1} << 33, std::uint64_t{1} << 62, ~std::uint64_t{0} >> 1}) {
    std::string tar = TarMember("a", "1") + TarEnd();
    TarHeader header = MakeTarHeader("a", kTarRegular, size, 0600, 0);
    std::memcpy(tar.data(), &header, sizeof(header));
    EXPECT_THAT(OpenStatus(tar), StatusIs(StatusCode::kDataLoss)) << size;
  }
  EXPECT_THAT(OpenStatus(TarMember("pax", PaxRecord("size", "99999999999999999999"), kTarPax) +
                         TarMember("a", "x") + TarEnd()),
              StatusIs(StatusCode::kInvalidArgument));
}

TEST(ArchiveTest, RefusesTooManyMembers) {
  const TempFolder folder;
  Spill(folder / "a.tar", TarMember("a", "") + TarMember("b", "") + TarEnd());
  EXPECT_THAT(Archive::Open(folder / "a.tar", {.max_members = 1}),
              StatusIs(StatusCode::kResourceExhausted));
}

TEST(ArchiveTest, KnowsSizesAbove8GiB) {
  const TempFolder folder;
  const std::uint64_t size = (std::uint64_t{9} << 30) + 5;  // a hole on disk
  const TarHeader header = MakeTarHeader("big", kTarRegular, size, 0600, 0);
  Spill(folder / "a.tar", {reinterpret_cast<const char*>(&header), sizeof(header)});
  ASSERT_EQ(
      ::truncate((folder / "a.tar").c_str(), static_cast<off_t>(512 + RoundUpToBlock(size) + 1024)),
      0);
  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  EXPECT_EQ(*(*archive)->members().Size("big"), size);
  EXPECT_EQ(std::system(("tar -tf " + (folder / "a.tar") + " | grep -qx big").c_str()), 0);
}

TEST(VerifyTest, FindsWhatWasAlteredRemovedOrAdded) {
  const TempFolder folder;
  WriteArchive(folder / "a.tar", {{"core-1.img", "registers"}}, {{"dump.log", "all went well"}});
  std::string tar = Slurp(folder / "a.tar");
  tar.replace(tar.find("all went well"), 3, "not");
  const std::string added = TarMember("volumes/x", "new");
  tar.insert(0, added);
  Spill(folder / "b.tar", tar);

  const auto archive = Archive::Open(folder / "b.tar");
  ASSERT_THAT(archive, IsOk());
  const Result<Verification> verified = Verify(**archive);
  ASSERT_THAT(verified, IsOk());
  EXPECT_THAT(verified->problems,
              ::testing::UnorderedElementsAre(HasSubstr("dump.log: its content was altered"),
                                              HasSubstr("volumes/x: not in the manifest")));
}

TEST(VerifyTest, TakesAnArchiveWithoutHashesAsItIsAndNamesWhatWasAltered) {
  EXPECT_THAT(CheckUnaltered(**Archive::Open(kContainerd)), IsOk());
  const TempFolder folder;
  WriteArchive(folder / "a.tar", {{"core-1.img", "registers"}});
  std::uint64_t seen = 0;
  const auto progress = [&](std::uint64_t done, std::uint64_t) { seen = done; };
  EXPECT_THAT(CheckUnaltered(**Archive::Open(folder / "a.tar"), progress), IsOk());
  EXPECT_GT(seen, 0u);
  std::string tar = Slurp(folder / "a.tar");
  tar[tar.find("registers")] ^= 1;
  Spill(folder / "b.tar", tar);
  EXPECT_THAT(CheckUnaltered(**Archive::Open(folder / "b.tar")),
              StatusIs(StatusCode::kDataLoss, HasSubstr("core-1.img")));
}

TEST(VerifyTest, NotesWhatFollowsTheEnd) {
  const TempFolder folder;
  WriteArchive(folder / "a.tar");
  Spill(folder / "b.tar", Slurp(folder / "a.tar") + "the rest of a longer archive");
  const Result<Verification> verified = Verify(**Archive::Open(folder / "b.tar"));
  EXPECT_THAT(verified->notes, Contains(HasSubstr("28 bytes follow the end mark")));
}

TEST(VerifyTest, RefusesAManifestOfANewerFormat) {
  const TempFolder folder;
  Spill(folder / "a.tar",
        TarMember(kManifestName, R"({"formatVersion":3,"stasisVersion":"9.0"})") + TarEnd());
  EXPECT_THAT(Verify(**Archive::Open(folder / "a.tar")),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("9.0")));
}

}  // namespace
}  // namespace stasis::archive
