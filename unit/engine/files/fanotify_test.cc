#include <sys/fanotify.h>
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

void Touch(const std::string& path) { Fd(::open(path.c_str(), O_CREAT | O_WRONLY, 0600)); }

class FanotifyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fd = UniqueFd(::fanotify_init(FAN_CLASS_CONTENT | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY));
    if (!fd) GTEST_SKIP() << "fanotify_init: " << std::strerror(errno);
    Touch(scratch / "file");
  }
  void Mark(unsigned flags, std::uint64_t mask) const {
    ASSERT_EQ(
        ::fanotify_mark(fd.get(), FAN_MARK_ADD | flags, mask, AT_FDCWD, (scratch / "file").c_str()),
        0)
        << std::strerror(errno);
  }

  const ScratchDirectory scratch;
  UniqueFd fd;
};

TEST_F(FanotifyTest, WhatIsIgnoredIsSoAgain) {
  Mark(0, FAN_OPEN | FAN_CLOSE_WRITE);
  Mark(FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_CLOSE_WRITE);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  ASSERT_THAT(trip.dump.entries[0].ffy().mark(), SizeIs(1));
  LocalProcessActor process;
  ASSERT_THAT(FinishFile(trip.dump.entries[0], trip.restored.get(), process), IsOk());
  const std::string before = Describe(fd.get(), 1).fdinfo;
  const std::string after = Describe(trip.restored.get(), 1).fdinfo;
  EXPECT_EQ(after.substr(after.find("fanotify")), before.substr(before.find("fanotify")));
}

TEST_F(FanotifyTest, RefusesAProgramThatOthersWouldWaitFor) {
  Mark(0, FAN_OPEN_PERM);
  EXPECT_THAT(RoundTrip(fd.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("decides what others may open")));
}

TEST_F(FanotifyTest, TheReportTellsOfUnreadEvents) {
  Mark(0, FAN_MODIFY);
  const UniqueFd file = Fd(::open((scratch / "file").c_str(), O_WRONLY));
  ASSERT_EQ(::write(file.get(), "x", 1), 1);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_THAT(trip.dump.notes, Contains(HasSubstr("events that nobody has read")));
}

TEST_F(FanotifyTest, SaysWhichPathIsMissing) {
  Mark(0, FAN_MODIFY);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  ASSERT_EQ(::unlink((scratch / "file").c_str()), 0);
  LocalProcessActor process;
  EXPECT_THAT(FinishFile(trip.dump.entries[0], trip.restored.get(), process),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr(scratch / "file")));
}

}  // namespace
}  // namespace stasis::engine
