#include "archive/archive_writer.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <random>

#include "unit/archive/archives.h"

namespace stasis::archive {
namespace {

using stasis::testing::IsOk;
using stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(ArchiveWriterTest, GivesBackWhatWasWritten) {
  const TempFolder folder;
  const std::string long_name = "io.kubernetes." + std::string(150, 'x');
  WriteArchive(folder / "a.tar", {{"core-1.img", "registers"}, {"pages-1.img", "memory"}},
               {{long_name, "long"}, {"dump.log", ""}});

  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  EXPECT_EQ(*(*archive)->images().Get("core-1.img"), "registers");
  EXPECT_EQ(*(*archive)->images().Get("pages-1.img"), "memory");
  EXPECT_EQ(*(*archive)->Get(long_name), "long");
  EXPECT_EQ(*(*archive)->Get("dump.log"), "");
  EXPECT_THAT((*archive)->images().Names(),
              UnorderedElementsAre("core-1.img", "pages-1.img", "inventory.img"));
  const Result<Verification> verified = Verify(**archive);
  ASSERT_THAT(verified, IsOk());
  EXPECT_TRUE(verified->has_manifest);
  EXPECT_THAT(verified->problems, IsEmpty());
}

TEST(ArchiveWriterTest, ImagesBecomeThoseOfTheParent) {
  const TempFolder folder;
  const auto writer = ArchiveWriter::Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  for (const std::string_view content : {"oldest", "older"}) {
    ASSERT_THAT((*writer)->images().Put("pages-1.img", content), IsOk());
    ASSERT_THAT((*writer)->images().BeginIncrement(), IsOk());
  }
  ASSERT_THAT((*writer)->images().Put("pages-1.img", "youngest"), IsOk());
  ASSERT_THAT((*writer)->images().Put("inventory.img", ""), IsOk());
  for (const auto* const name : {"config.dump", "spec.dump"}) {
    ASSERT_THAT((*writer)->AddMember(name, "{}"), IsOk());
  }
  ASSERT_THAT((*writer)->Commit({}, {}), IsOk());
  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  EXPECT_EQ(*(*archive)->images().Get("pages-1.img"), "youngest");
  EXPECT_EQ(*(*archive)->images().Get("parent/pages-1.img"), "older");
  EXPECT_EQ(*(*archive)->images().Get("parent/parent/pages-1.img"), "oldest");
  const Result<Verification> verified = Verify(**archive);
  ASSERT_THAT(verified, IsOk());
  EXPECT_THAT(verified->problems, IsEmpty());
}

TEST(ArchiveWriterTest, IsForRootsEyesOnly) {
  const TempFolder folder;
  WriteArchive(folder / "a.tar");
  struct stat st = {};
  ASSERT_EQ(::stat((folder / "a.tar").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
}

TEST(ArchiveWriterTest, PutsPagesOnPageBoundaries) {
  const TempFolder folder;
  std::vector<NamedBytes> images;
  for (int i = 0; i < 12; ++i) {  // every phase of a block within a page
    images.push_back({"core-" + std::to_string(i) + ".img", std::string(40, 'c')});
    images.push_back({"pages-" + std::to_string(i) + ".img", "PAGES" + std::string(5000, 'p')});
  }
  WriteArchive(folder / "a.tar", images);

  const std::string tar = Slurp(folder / "a.tar");
  int seen = 0;
  for (std::size_t at = tar.find("PAGES"); at != tar.npos; at = tar.find("PAGES", at + 1)) {
    EXPECT_EQ(at % 4096, 0u);
    ++seen;
  }
  EXPECT_EQ(seen, 12);
  EXPECT_THAT(Archive::Open(folder / "a.tar"), IsOk());
}

TEST(ArchiveWriterTest, PatchesTheSizeOfAStreamedMember) {
  const TempFolder folder;
  auto writer = ArchiveWriter::Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  auto stream = (*writer)->OpenMember("rootfs-diff.tar");
  ASSERT_THAT(stream, IsOk());
  ASSERT_THAT((*stream)->Write(Bytes("one ")), IsOk());
  ASSERT_THAT((*stream)->Write(Bytes("two")), IsOk());
  ASSERT_THAT((*stream)->Finish(), IsOk());
  ASSERT_THAT((*writer)->Commit({}, {"a note"}), IsOk());

  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  EXPECT_EQ(*(*archive)->Get("rootfs-diff.tar"), "one two");
  EXPECT_THAT(ReadManifest(**archive)->notes, ElementsAre("a note"));
}

// Pieces of every size, so that what goes past the page cache and what goes through it meet anywhere in a page.
TEST(ArchiveWriterTest, WritesTheSameInAHurryAndWithout) {
  const TempFolder folder;
  auto writer = ArchiveWriter::Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  std::mt19937 random(7);  // NOLINT: the same each time
  std::map<std::string, std::string> members;
  for (int member = 0; member < 12; ++member) {
    const std::string name = "member-" + std::to_string(member);
    auto stream = (*writer)->OpenMember(name);
    ASSERT_THAT(stream, IsOk());
    for (int piece = 0; piece < 12; ++piece) {
      const std::string bytes(random() % 300'000, static_cast<char>('a' + random() % 26));
      (*writer)->Hurry(random() % 2 == 0);
      ASSERT_THAT((*stream)->Write(Bytes(bytes)), IsOk());
      members[name] += bytes;
    }
    ASSERT_THAT((*stream)->Finish(), IsOk());
  }
  ASSERT_THAT((*writer)->Commit({}, {}), IsOk());

  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  for (const auto& [name, bytes] : members) EXPECT_EQ(*(*archive)->Get(name), bytes) << name;
  EXPECT_THAT(Verify(**archive)->problems, ::testing::Each(HasSubstr("missing")));  // no digest
}

// The node's page cache stays its workloads'.
TEST(ArchiveWriterTest, TheBulkIsNotLeftInThePageCache) {
  const TempFolder folder;
  auto writer = ArchiveWriter::Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  ASSERT_THAT((*writer)->images().Put("pages-1.img", std::string(std::size_t{32} << 20, 'p')),
              IsOk());
  ASSERT_THAT((*writer)->Commit({}, {}), IsOk());

  const UniqueFd file(::open((folder / "a.tar").c_str(), O_RDONLY | O_CLOEXEC));
  struct statx st = {};
  ASSERT_EQ(::statx(file.get(), "", AT_EMPTY_PATH, STATX_SIZE | STATX_DIOALIGN, &st), 0);
  if (st.stx_dio_offset_align == 0) GTEST_SKIP() << "a file system without O_DIRECT";
  void* mapped = ::mmap(nullptr, st.stx_size, PROT_READ, MAP_SHARED, file.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  std::vector<unsigned char> cached(st.stx_size / 4096 + 1);
  EXPECT_EQ(::mincore(mapped, st.stx_size, cached.data()), 0);
  ::munmap(mapped, st.stx_size);
  EXPECT_LT(std::ranges::count_if(cached, [](unsigned char page) { return (page & 1) != 0; }), 100);
}

TEST(ArchiveWriterTest, RefusesARelativeLocation) {
  EXPECT_THAT(ArchiveWriter::Create("a.tar"), StatusIs(StatusCode::kInvalidArgument));
}

TEST(ArchiveWriterTest, RefusesAMissingFolder) {
  const TempFolder folder;
  EXPECT_THAT(ArchiveWriter::Create(folder / "missing/a.tar"), StatusIs(StatusCode::kNotFound));
}

TEST(ArchiveWriterTest, RefusesAFolderThatCannotBeWritten) {
  EXPECT_THAT(
      ArchiveWriter::Create("/proc/sys/a.tar"),
      ::testing::AnyOf(StatusIs(StatusCode::kPermissionDenied), StatusIs(StatusCode::kNotFound)));
}

TEST(ArchiveWriterTest, NeverReplacesAnArchiveOfTheSameSecond) {
  const TempFolder folder;
  auto first = ArchiveWriter::Create(folder / "a.tar");
  auto second = ArchiveWriter::Create(folder / "a.tar");
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(second, IsOk());
  ASSERT_THAT((*first)->AddMember("dump.log", "first"), IsOk());
  ASSERT_THAT((*first)->Commit({}, {}), IsOk());

  EXPECT_THAT((*second)->Commit({}, {}),
              StatusIs(StatusCode::kAlreadyExists, HasSubstr("not overwritten")));
  EXPECT_THAT(ArchiveWriter::Create(folder / "a.tar"), StatusIs(StatusCode::kAlreadyExists));
  second->reset();
  EXPECT_THAT(folder.Names(), ElementsAre("a.tar"));
  EXPECT_EQ(*(*Archive::Open(folder / "a.tar"))->Get("dump.log"), "first");
}

TEST(ArchiveWriterTest, LeavesNothingWhenAMemberIsCutShort) {
  const TempFolder folder;
  {
    auto writer = ArchiveWriter::Create(folder / "a.tar");
    ASSERT_THAT(writer, IsOk());
    auto stream = (*writer)->images().Open("pages-1.img", 100);
    ASSERT_THAT(stream, IsOk());
    ASSERT_THAT((*stream)->Write(Bytes("too few")), IsOk());
    EXPECT_THAT((*stream)->Finish(), StatusIs(StatusCode::kFailedPrecondition));
    stream->reset();
    EXPECT_THAT((*writer)->Commit({}, {}), StatusIs(StatusCode::kFailedPrecondition));
  }
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(ArchiveWriterTest, TakesOneStreamAtATimeAndANameOnce) {
  const TempFolder folder;
  auto writer = ArchiveWriter::Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  auto stream = (*writer)->images().Open("a.img", 0);
  EXPECT_THAT((*writer)->AddMember("dump.log", ""), StatusIs(StatusCode::kFailedPrecondition));
  ASSERT_THAT((*stream)->Finish(), IsOk());
  EXPECT_THAT((*writer)->AddMember("dump.log", ""), IsOk());
  EXPECT_THAT((*writer)->AddMember("dump.log", ""), StatusIs(StatusCode::kAlreadyExists));
  EXPECT_THAT((*writer)->AddMember("../dump.log", ""), StatusIs(StatusCode::kInvalidArgument));
}

TEST(ArchiveWriterTest, SaysThatTheDiskIsFullAndLeavesNothing) {
  const TempFolder folder;
  ASSERT_EQ(::mount("stasis-test", folder.path().c_str(), "tmpfs", 0, "size=1m"), 0)
      << "needs root to mount a small tmpfs";
  const absl::Cleanup unmount = [&] { ::umount2(folder.path().c_str(), MNT_DETACH); };
  {
    auto writer = ArchiveWriter::Create(folder / "a.tar");
    ASSERT_THAT(writer, IsOk());
    EXPECT_THAT((*writer)->AddMember("dump.log", std::string(16 << 20, 'x')),
                StatusIs(StatusCode::kResourceExhausted, HasSubstr("free space")));
    EXPECT_THAT((*writer)->Commit({}, {}), StatusIs(StatusCode::kFailedPrecondition));
  }
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(ArchiveWriterTest, CopiesALogThatGrowsMeanwhile) {
  const TempFolder folder;
  Spill(folder / "log", "line one\n");
  const UniqueFd log(::open((folder / "log").c_str(), O_RDONLY | O_CLOEXEC));
  auto writer = ArchiveWriter::Create(folder / "a.tar");
  ASSERT_THAT((*writer)->AddFile("container.log", log.get()), IsOk());
  ASSERT_THAT((*writer)->Commit({}, {}), IsOk());
  EXPECT_EQ(*(*Archive::Open(folder / "a.tar"))->Get("container.log"), "line one\n");
}

TEST(PendingFileTest, TakesAHiddenNameWhereNoNamelessFileCanBe) {
  const TempFolder folder;
  {
    Result<PendingFile> given_up = PendingFile::Create(folder / "a", PendingFile::Kind::kDotNamed);
    ASSERT_THAT(given_up, IsOk());
    EXPECT_THAT(folder.Names(), ElementsAre(::testing::StartsWith(".stasis-")));
  }
  EXPECT_THAT(folder.Names(), IsEmpty());
  Result<PendingFile> kept = PendingFile::Create(folder / "a", PendingFile::Kind::kDotNamed);
  Result<PendingFile> late = PendingFile::Create(folder / "a", PendingFile::Kind::kDotNamed);
  ASSERT_THAT(kept->Publish(), IsOk());
  EXPECT_THAT(late->Publish(), StatusIs(StatusCode::kAlreadyExists));
}

}  // namespace
}  // namespace stasis::archive
