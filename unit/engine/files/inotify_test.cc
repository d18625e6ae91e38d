#include <sys/inotify.h>
#include <sys/stat.h>

#include "unit/engine/files/local_context.h"
#include "unit/engine/files/scratch_directory.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::SizeIs;

UniqueFd Watching(const std::string& path, std::uint32_t mask) {
  UniqueFd fd = Fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  EXPECT_EQ(::inotify_add_watch(fd.get(), path.c_str(), mask), 1) << std::strerror(errno);
  return fd;
}

void Touch(const std::string& path) { Fd(::open(path.c_str(), O_CREAT | O_WRONLY, 0600)); }

TEST(InotifyTest, AWatchOfAFolderIsFoundAndHasItsNumberAgain) {
  const ScratchDirectory scratch;
  ASSERT_EQ(::mkdir((scratch / "folder").c_str(), 0700), 0);
  const UniqueFd fd = Watching(scratch / "folder", IN_CREATE);
  ASSERT_EQ(::inotify_rm_watch(fd.get(), 1), 0);
  ReadSome(fd.get());
  ASSERT_EQ(::inotify_add_watch(fd.get(), (scratch / "folder").c_str(), IN_CREATE), 2);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  ASSERT_THAT(trip.dump.entries[0].ify().wd(), SizeIs(1));
  EXPECT_EQ(trip.dump.entries[0].ify().wd(0).f_handle().path(), scratch / "folder");
  LocalProcessActor process;
  ASSERT_THAT(FinishFile(trip.dump.entries[0], trip.restored.get(), process), IsOk());
  Touch(scratch / "folder/new");
  EXPECT_EQ(ReadSome(trip.restored.get()), ReadSome(fd.get()));
  const OpenFile again = Describe(trip.restored.get(), 1);
  EXPECT_THAT(again.fdinfo, HasSubstr("inotify wd:2 "));
}

TEST(InotifyTest, AFileOfAConfigMapIsWatchedThroughTheLinkThatStays) {
  const ScratchDirectory scratch;
  const std::string folder = "..2026_11_28_11_02_33.557977018";
  ASSERT_EQ(::mkdir((scratch / folder).c_str(), 0700), 0);
  ASSERT_EQ(::symlink(folder.c_str(), (scratch / "..data").c_str()), 0);
  Touch(scratch / "..data/key");
  const UniqueFd fd = Watching(scratch / "..data/key", IN_OPEN);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(trip.dump.entries[0].ify().wd(0).f_handle().path(), scratch / "..data/key");
}

TEST(InotifyTest, TheReportTellsOfUnreadEvents) {
  const ScratchDirectory scratch;
  Touch(scratch / "file");
  const UniqueFd fd = Watching(scratch / "file", IN_OPEN);
  Touch(scratch / "file");
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_THAT(trip.dump.notes, Contains(HasSubstr("events that nobody has read")));
  EXPECT_THAT(ReadSome(fd.get()), SizeIs(sizeof(inotify_event))) << "the dump read them";
}

TEST(InotifyTest, RefusesWhatHasNoPath) {
  const ScratchDirectory scratch;
  const UniqueFd file = Fd(::open((scratch / "file").c_str(), O_CREAT | O_RDWR, 0600));
  const UniqueFd fd = Watching(scratch / "file", IN_MODIFY);
  ASSERT_EQ(::unlink((scratch / "file").c_str()), 0);
  EXPECT_THAT(RoundTrip(fd.get()).status, StatusIs(StatusCode::kUnimplemented, HasSubstr("inode")));
}

TEST(InotifyTest, SaysWhichPathIsMissing) {
  const ScratchDirectory scratch;
  ASSERT_EQ(::mkdir((scratch / "folder").c_str(), 0700), 0);
  const UniqueFd fd = Watching(scratch / "folder", IN_CREATE);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  ASSERT_EQ(::rmdir((scratch / "folder").c_str()), 0);
  LocalProcessActor process;
  EXPECT_THAT(FinishFile(trip.dump.entries[0], trip.restored.get(), process),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr(scratch / "folder")));
}

}  // namespace
}  // namespace stasis::engine
