#include "engine/files/ghost_file.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <utility>

#include "engine/files/kept_links.h"
#include "unit/engine/files/local_context.h"
#include "unit/engine/files/scratch_directory.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

std::uint64_t MountOf(int fd) {
  struct statx st = {};
  EXPECT_EQ(::statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &st), 0);
  return st.stx_mnt_id;
}

TEST(GhostFileTest, ADeletedFileKeepsContentHolesAndMode) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "file";
  const UniqueFd fd = Fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0640));
  ASSERT_EQ(::pwrite(fd.get(), "far", 3, 50 << 20), 3);
  ASSERT_EQ(::ftruncate(fd.get(), 200 << 20), 0);
  ASSERT_EQ(::lseek(fd.get(), 50 << 20, SEEK_SET), 50 << 20);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  const OpenFile restored = Describe(trip.restored.get(), 1);
  EXPECT_EQ(restored.st.st_size, 200 << 20);
  EXPECT_LT(restored.st.st_blocks, 1000);
  EXPECT_EQ(restored.st.st_mode, S_IFREG | 0640u);
  EXPECT_EQ(restored.st.st_nlink, 0u);
  EXPECT_EQ(ReadSome(trip.restored.get()).substr(0, 4), std::string("far\0", 4));
  EXPECT_TRUE(std::filesystem::is_empty(scratch / "."));
  EXPECT_EQ(::lseek(fd.get(), 0, SEEK_CUR), (50 << 20)) << "the dump moved the offset";
}

TEST(GhostFileTest, TwoOpenFilesOfADeletedOneShareItAgain) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "file";
  const UniqueFd writer = Fd(::open(path.c_str(), O_WRONLY | O_CREAT, 0600));
  const UniqueFd reader = Fd(::open(path.c_str(), O_RDONLY));
  ASSERT_EQ(::unlink(path.c_str()), 0);
  LocalDumpContext dump;
  const std::uint32_t reader_id = dump.Add(reader.get());
  const std::uint32_t writer_id = dump.Add(writer.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> new_reader = restore.Restore(reader_id);
  const Result<UniqueFd> new_writer = restore.Restore(writer_id);
  ASSERT_THAT(new_reader, IsOk());
  ASSERT_THAT(new_writer, IsOk());
  ASSERT_THAT(WriteAll(new_writer->get(), "shared"), IsOk());
  EXPECT_EQ(ReadSome(new_reader->get()), "shared");
}

// Both of one checkpoint.
std::pair<Result<UniqueFd>, Result<UniqueFd>> DumpAndRestore(const UniqueFd& one,
                                                             const UniqueFd& other) {
  LocalDumpContext dump;
  const std::uint32_t ids[] = {dump.Add(one.get()), dump.Add(other.get())};
  EXPECT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  Result<UniqueFd> first = restore.Restore(ids[0]);
  return {std::move(first), restore.Restore(ids[1])};
}

TEST(GhostFileTest, ADeletedFileIsOpenByEachOfItsNamesAgain) {
  const ScratchDirectory scratch;
  const UniqueFd one = Fd(::open((scratch / "one").c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_EQ(::link((scratch / "one").c_str(), (scratch / "other").c_str()), 0);
  const UniqueFd other = Fd(::open((scratch / "other").c_str(), O_RDONLY));
  ASSERT_EQ(::unlink((scratch / "one").c_str()) | ::unlink((scratch / "other").c_str()), 0);
  const auto [first, second] = DumpAndRestore(one, other);
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(Describe(first->get(), 1).link, (scratch / "one") + " (deleted)");
  EXPECT_EQ(Describe(second->get(), 1).link, (scratch / "other") + " (deleted)");
  EXPECT_EQ(Describe(first->get(), 1).st.st_ino, Describe(second->get(), 1).st.st_ino);
  EXPECT_TRUE(std::filesystem::is_empty(scratch / "."));
}

TEST(GhostFileTest, ADeletedFileIsOpenThroughEachOfItsMountsAgain) {
  const ScratchDirectory scratch;
  ASSERT_TRUE(std::filesystem::create_directories(scratch / "disk/part"));
  ASSERT_TRUE(std::filesystem::create_directory(scratch / "place"));
  if (::mount((scratch / "disk/part").c_str(), (scratch / "place").c_str(), nullptr, MS_BIND,
              nullptr) != 0) {
    GTEST_SKIP() << "no right to mount";
  }
  const absl::Cleanup unmount = [&] { ::umount2((scratch / "place").c_str(), MNT_DETACH); };
  const UniqueFd one = Fd(::open((scratch / "disk/part/file").c_str(), O_RDWR | O_CREAT, 0600));
  const UniqueFd other = Fd(::open((scratch / "place/file").c_str(), O_RDONLY));
  ASSERT_EQ(::unlink((scratch / "place/file").c_str()), 0);
  const auto [first, second] = DumpAndRestore(one, other);
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(MountOf(first->get()), MountOf(one.get()));
  EXPECT_EQ(MountOf(second->get()), MountOf(other.get()));
  EXPECT_EQ(Describe(first->get(), 1).st.st_ino, Describe(second->get(), 1).st.st_ino);
}

TEST(GhostFileTest, AFileThatWasReplacedIsNotItsSuccessor) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "file";
  const UniqueFd old = Fd(::open(path.c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_THAT(WriteAll(old.get(), "old"), IsOk());
  const UniqueFd successor = Fd(::open((scratch / "new").c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_THAT(WriteAll(successor.get(), "successor"), IsOk());
  ASSERT_EQ(::rename((scratch / "new").c_str(), path.c_str()), 0);
  ASSERT_EQ(::lseek(old.get(), 0, SEEK_SET), 0);
  const RoundTrip trip(old.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(ReadSome(trip.restored.get()), "old");
  EXPECT_EQ(std::filesystem::file_size(path), 9u);
}

TEST(GhostFileTest, RefusesALargeOne) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "file";
  const UniqueFd fd = Fd(::open(path.c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_EQ(::posix_fallocate(fd.get(), 0, kGhostLimitBytes + 4096), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  EXPECT_THAT(RoundTrip(fd.get()).status, StatusIs(StatusCode::kUnimplemented, HasSubstr("limit")));
}

TEST(GhostFileTest, ADeletedDirectoryAndAFileWithinKeepTheirLinks) {
  const ScratchDirectory scratch;
  ASSERT_EQ(::mkdir((scratch / "dir").c_str(), 0700), 0);
  const UniqueFd dir = Fd(::open((scratch / "dir").c_str(), O_RDONLY | O_DIRECTORY));
  const UniqueFd file = Fd(::open((scratch / "dir/file").c_str(), O_RDWR | O_CREAT, 0600));
  std::filesystem::remove_all(scratch / "dir");
  for (const int fd : {dir.get(), file.get()}) {
    const RoundTrip trip(fd);
    ASSERT_THAT(trip.status, IsOk());
    EXPECT_EQ(Describe(trip.restored.get(), 1).link, Describe(fd, 1).link);
    EXPECT_EQ(Describe(trip.restored.get(), 1).st.st_mode, Describe(fd, 1).st.st_mode);
  }
  EXPECT_TRUE(std::filesystem::is_empty(scratch / "."));
}

TEST(GhostFileTest, ADeletedSymbolicLinkKeepsItsTarget) {
  const ScratchDirectory scratch;
  ASSERT_EQ(::symlink("far/away", (scratch / "link").c_str()), 0);
  const UniqueFd link = Fd(::open((scratch / "link").c_str(), O_PATH | O_NOFOLLOW));
  ASSERT_EQ(::unlink((scratch / "link").c_str()), 0);
  const RoundTrip trip(link.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(ReadLinkAt(trip.restored.get(), "").value_or(""), "far/away");
}

TEST(GhostFileTest, AnArchiveGetsNoDeviceOfItsChoice) {
  const ScratchDirectory scratch;
  LocalDumpContext dump;
  image::GhostFileEntry ghost;
  ghost.set_uid(0);
  ghost.set_gid(0);
  ghost.set_mode(S_IFBLK | 0666);
  ghost.set_rdev(8 << 20);
  dump.images.Add("ghost-file-1", ghost.SerializeAsString(), "");
  LocalRestoreContext restore(dump);
  image::RegFileEntry reg;
  reg.set_name(scratch / "disk");
  EXPECT_THAT(KeepGhost(reg, 1, restore), StatusIs(StatusCode::kUnimplemented));
  EXPECT_TRUE(std::filesystem::is_empty(scratch / "."));
}

TEST(GhostFileTest, AFileWithAnotherNameStaysTheSame) {
  const ScratchDirectory scratch;
  const UniqueFd file = Fd(::open((scratch / "lost").c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_EQ(::link((scratch / "lost").c_str(), (scratch / "other").c_str()), 0);
  ASSERT_EQ(::unlink((scratch / "lost").c_str()), 0);
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(file.get());
  KeptLinks links;
  dump.links = &links;
  ASSERT_THAT(dump.DumpAll(), IsOk());
  ASSERT_THAT(links.Make(), IsOk());
  links.Commit();
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(Describe(restored->get(), 1).st.st_ino, Describe(file.get(), 1).st.st_ino);
  const UniqueFd root = Fd(::open("/", O_PATH));
  for (const image::FileEntry& entry : dump.entries) {
    EXPECT_THAT(RemoveKeptLink(root.get(), entry.reg().name()), IsOk());
  }
  EXPECT_EQ(Describe(file.get(), 1).st.st_nlink, 1u);
}

TEST(KeptLinksTest, AreTakenBackUnlessTheyAreCommitted) {
  const ScratchDirectory scratch;
  const UniqueFd file = Fd(::open((scratch / "file").c_str(), O_RDWR | O_CREAT, 0600));
  const UniqueFd root = Fd(::open("/", O_PATH));
  {
    KeptLinks links;
    ASSERT_THAT(links.Plan(root.get(), scratch / "lost", file.get()), IsOk());
    ASSERT_THAT(links.Make(), IsOk());
    EXPECT_EQ(Describe(file.get(), 1).st.st_nlink, 2u);
  }
  EXPECT_EQ(Describe(file.get(), 1).st.st_nlink, 1u);
}

TEST(KeptLinksTest, OnlyLinksOfOursAreRemoved) {
  const ScratchDirectory scratch;
  const UniqueFd file = Fd(::open((scratch / "file").c_str(), O_RDWR | O_CREAT, 0600));
  const UniqueFd root = Fd(::open("/", O_PATH));
  EXPECT_THAT(RemoveKeptLink(root.get(), scratch / "file"), IsOk());
  EXPECT_EQ(Describe(file.get(), 1).st.st_nlink, 1u);
}

// Whether the bits come back is for the process under restore, which may set them or not.
class NoSetId : public LocalFileActor {
 public:
  Status SetMode(const std::string&, unsigned) override { return PermissionDenied("not yours"); }
};

TEST(GhostFileTest, SetUserIdBitsAreTheProcesssToSet) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "file";
  const UniqueFd fd = Fd(::open(path.c_str(), O_RDWR | O_CREAT, 0755));
  ASSERT_EQ(::fchmod(fd.get(), 06755), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(Describe(trip.restored.get(), 1).st.st_mode, S_IFREG | 06755u);
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  NoSetId actor;
  LocalRestoreContext restore(dump, &actor);
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(Describe(restored->get(), 1).st.st_mode, S_IFREG | 0755u);
}

}  // namespace
}  // namespace stasis::engine
