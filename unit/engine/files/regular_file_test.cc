#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <filesystem>

#include "unit/engine/files/local_context.h"
#include "unit/engine/files/scratch_directory.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

UniqueFd MakeFile(const std::string& path, std::string_view content, int flags = O_RDWR) {
  UniqueFd fd = Fd(::open(path.c_str(), flags | O_CREAT | O_CLOEXEC, 0600));
  EXPECT_THAT(WriteAll(fd.get(), content), IsOk());
  return fd;
}

TEST(RegularFileTest, KeepsPathFlagsAndOffset) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "odd name\n(deleted)";
  const UniqueFd fd = MakeFile(path, "content", O_RDWR | O_APPEND | O_TRUNC);
  ASSERT_EQ(::lseek(fd.get(), 3, SEEK_SET), 3);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(trip.dump.entries[0].reg().name(), path);
  EXPECT_EQ(ReadSome(trip.restored.get()), "tent");
  EXPECT_EQ(Describe(trip.restored.get(), 1).flags, Describe(fd.get(), 1).flags);
}

TEST(RegularFileTest, ANameThatEndsInDeletedIsAName) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "file (deleted)";
  const UniqueFd fd = MakeFile(path, "x");
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(trip.dump.entries[0].reg().name(), path);
}

// As the kubelet lays out the volume of a ConfigMap, in one pod and in the next.
TEST(RegularFileTest, AnOpenFileOfAConfigMapIsTheNextPods) {
  const ScratchDirectory scratch;
  const std::string now = "..2026_11_28_11_02_33.557977018", next = "..2027_01_01_00_00_00.1";
  for (const std::string& name : {now, next}) {
    ASSERT_EQ(::mkdir((scratch / name).c_str(), 0755), 0);
    MakeFile(scratch / (name + "/key"), name == now ? "this" : "that");
  }
  ASSERT_EQ(::symlink(now.c_str(), (scratch / "..data").c_str()), 0);
  const UniqueFd fd = Fd(::open((scratch / (now + "/key")).c_str(), O_RDONLY));
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  EXPECT_EQ(dump.entries[0].reg().name(), scratch / "..data/key");
  std::filesystem::remove_all(scratch / now);
  ASSERT_EQ(::unlink((scratch / "..data").c_str()), 0);
  ASSERT_EQ(::symlink(next.c_str(), (scratch / "..data").c_str()), 0);
  const auto restored = LocalRestoreContext(dump).Restore(id);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(ReadSome(restored->get()), "that");
}

TEST(RegularFileTest, DirectoriesDevicesAndProcOpenAgain) {
  for (const char* const path : {"/usr/share", "/dev/null", "/dev/urandom", "/proc/self/status",
                                 "/proc/version", "/sys/kernel/mm"}) {
    const UniqueFd fd = Fd(::open(path, O_RDONLY));
    const RoundTrip trip(fd.get());
    ASSERT_THAT(trip.status, IsOk()) << path;
    EXPECT_EQ(Describe(trip.restored.get(), 1).link, Describe(fd.get(), 1).link);
    EXPECT_EQ(Describe(trip.restored.get(), 1).flags, Describe(fd.get(), 1).flags);
  }
}

TEST(RegularFileTest, ADeviceMayHaveAnotherNodeByNow) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "null";
  if (::mknod(path.c_str(), S_IFCHR | 0600, makedev(1, 3)) != 0) GTEST_SKIP() << "no mknod here";
  const UniqueFd fd = Fd(::open(path.c_str(), O_RDWR));
  ASSERT_EQ(::unlink(path.c_str()), 0);
  ASSERT_EQ(::mknod(path.c_str(), S_IFCHR | 0600, makedev(1, 5)), 0);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(Describe(trip.restored.get(), 1).st.st_rdev, makedev(1, 3)) << "that is not /dev/zero";
  ASSERT_EQ(::unlink(path.c_str()), 0);
  ASSERT_EQ(::mknod(path.c_str(), S_IFCHR | 0600, makedev(1, 3)), 0);
  EXPECT_THAT(RoundTrip(fd.get()).status, IsOk());
}

TEST(RegularFileTest, AnOpenedSymbolicLinkStaysALink) {
  const ScratchDirectory scratch;
  ASSERT_EQ(::symlink("/nowhere", (scratch / "link").c_str()), 0);
  const UniqueFd fd = Fd(::open((scratch / "link").c_str(), O_PATH | O_NOFOLLOW));
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_TRUE(S_ISLNK(Describe(trip.restored.get(), 1).st.st_mode));
}

TEST(RegularFileTest, RefusesOneThatShrankAndTakesOneThatGrew) {
  const ScratchDirectory scratch;
  const UniqueFd fd = MakeFile(scratch / "file", "0123456789");
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  ASSERT_THAT(WriteAll(fd.get(), "more"), IsOk());
  EXPECT_THAT(restore.Restore(id), IsOk());
  ASSERT_EQ(::ftruncate(fd.get(), 9), 0);
  EXPECT_THAT(restore.Restore(id),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("10 bytes")));
}

TEST(RegularFileTest, RefusesAnotherTypeOfFileInItsPlace) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "file";
  const UniqueFd fd = MakeFile(path, "");
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  EXPECT_THAT(restore.Restore(id), StatusIs(StatusCode::kNotFound, HasSubstr(path)));
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(restore.Restore(id), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("FIFO")));
}

TEST(RegularFileTest, AnArchiveCannotCreateOrTruncate) {
  const ScratchDirectory scratch;
  const UniqueFd fd = MakeFile(scratch / "file", "stays");
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  image::RegFileEntry& reg = *dump.entries[0].mutable_reg();
  LocalRestoreContext restore(dump);
  reg.set_flags(O_RDWR | O_TRUNC | O_CREAT);
  ASSERT_THAT(restore.Restore(id), IsOk());
  EXPECT_EQ(std::filesystem::file_size(scratch / "file"), 5u);
  reg.set_name(scratch / "new");
  EXPECT_THAT(restore.Restore(id), StatusIs(StatusCode::kNotFound));
  reg.set_name("relative");
  EXPECT_THAT(restore.Restore(id), StatusIs(StatusCode::kInvalidArgument));
}

TEST(RegularFileTest, RefusesAnObjectThatNoKindOwns) {
  const UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)));
  if (!fd) GTEST_SKIP() << "no userfaultfd here";
  EXPECT_THAT(RoundTrip(fd.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("userfaultfd")));
}

TEST(RegularFileTest, SignalsGoToTheSameProcess) {
  const UniqueFd fd = Fd(::open("/dev/null", O_RDWR));
  const f_owner_ex owner = {.type = F_OWNER_PID, .pid = ::getpid()};
  ASSERT_EQ(::fcntl(fd.get(), F_SETOWN_EX, &owner), 0);
  ASSERT_EQ(::fcntl(fd.get(), F_SETSIG, 35), 0);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  LocalProcessActor process;
  ASSERT_THAT(FinishFile(trip.dump.entries[0], trip.restored.get(), process), IsOk());
  f_owner_ex restored = {};
  ASSERT_EQ(::fcntl(trip.restored.get(), F_GETOWN_EX, &restored), 0);
  EXPECT_EQ(restored.pid, ::getpid());
  EXPECT_EQ(restored.type, F_OWNER_PID);
  EXPECT_EQ(::fcntl(trip.restored.get(), F_GETSIG), 35);
}

}  // namespace
}  // namespace stasis::engine
