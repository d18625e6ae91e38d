#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>

#include <cstring>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// A pseudo-terminal: `slave` is what a program gets from its starter, who keeps `master`.
struct Pair {
  UniqueFd master = Fd(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  UniqueFd slave;

  Pair() {
    EXPECT_EQ(::unlockpt(master.get()), 0);
    slave = Fd(::open(::ptsname(master.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
  }
  std::string path() const { return ::ptsname(master.get()); }
};

termios Settings(int fd) {
  termios settings = {};
  EXPECT_EQ(::tcgetattr(fd, &settings), 0);
  return settings;
}

TEST(TerminalTest, TheNewStartersTerminalGetsTheSettingsOfTheOld) {
  const Pair before, after;
  termios raw = Settings(before.slave.get());
  ::cfmakeraw(&raw);
  raw.c_cc[VINTR] = 7;
  ASSERT_EQ(::tcsetattr(before.slave.get(), TCSANOW, &raw), 0);
  LocalDumpContext dump;
  dump.external = before.path();
  const std::uint32_t id = dump.Add(before.slave.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());

  LocalRestoreContext restore(dump);
  restore.external = after.slave.get();
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(Settings(after.slave.get()).c_lflag, raw.c_lflag);
  EXPECT_EQ(Settings(after.slave.get()).c_cc[VINTR], 7);
  ASSERT_THAT(WriteAll(restored->get(), "seen"), IsOk());
  EXPECT_EQ(ReadSome(after.master.get()), "seen");
}

TEST(TerminalTest, EachOpenFileKeepsItsOwnFlags) {
  const Pair pair;
  const UniqueFd other = Fd(::open(pair.path().c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK));
  LocalDumpContext dump;
  dump.external = pair.path();
  dump.Add(pair.slave.get());
  const std::uint32_t id = dump.Add(other.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  restore.external = pair.slave.get();
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(::fcntl(restored->get(), F_GETFL), ::fcntl(other.get(), F_GETFL));
  EXPECT_EQ(::fcntl(pair.slave.get(), F_GETFL) & O_NONBLOCK, 0);
}

TEST(TerminalTest, InputThatNobodyReadIsNamed) {
  const Pair pair;
  LocalDumpContext dump;
  dump.external = pair.path();
  dump.Add(pair.slave.get());
  ASSERT_THAT(WriteAll(pair.master.get(), "typed\n"), IsOk());
  pollfd arrived = {.fd = pair.slave.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&arrived, 1, 10'000), 1);  // the kernel carries it over on a thread of its own
  ASSERT_THAT(dump.DumpAll(), IsOk());
  ASSERT_THAT(dump.notes, SizeIs(1));
  EXPECT_THAT(dump.notes[0], HasSubstr("6 bytes of input"));
}

void Await(int fd) {
  pollfd arrived = {.fd = fd, .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&arrived, 1, 10'000), 1);
}

int FlagsAfter(int fd, int flags) {
  EXPECT_EQ(::fcntl(fd, F_SETFL, flags), 0);
  return ::fcntl(fd, F_GETFL);
}

TEST(TerminalTest, ADumpLeavesWhatWaitsAsItWas) {
  const Pair pair;
  const int flags = FlagsAfter(pair.master.get(), 0);
  ASSERT_THAT(WriteAll(pair.master.get(), "one\nt"), IsOk());
  Await(pair.slave.get());
  Await(pair.master.get());
  const termios before = Settings(pair.slave.get());
  LocalDumpContext dump;
  dump.Add(pair.slave.get());
  dump.Add(pair.master.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  EXPECT_THAT(dump.notes, IsEmpty());
  EXPECT_EQ(ReadSome(pair.slave.get()), "one\n");
  EXPECT_EQ(ReadSome(pair.master.get()), "one\r\nt");
  const termios after = Settings(pair.slave.get());
  // Settings() clears what lies between the members.
  // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison)
  EXPECT_EQ(std::memcmp(&before, &after, sizeof(after)), 0);
  EXPECT_EQ(::fcntl(pair.master.get(), F_GETFL), flags);
  ASSERT_THAT(WriteAll(pair.master.get(), "wo\n"), IsOk());
  Await(pair.slave.get());
  EXPECT_EQ(ReadSome(pair.slave.get()), "two\n") << "the beginning of a line was lost";
}

TEST(TerminalTest, ALiteralNextThatWaitsForItsByteStillDoes) {
  const Pair pair;
  ASSERT_THAT(WriteAll(pair.master.get(), "a\x16"), IsOk());
  Await(pair.master.get());
  LocalDumpContext dump;
  dump.Add(pair.slave.get());
  dump.Add(pair.master.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  ASSERT_THAT(WriteAll(pair.master.get(), "\x04\n"), IsOk());
  Await(pair.slave.get());
  EXPECT_EQ(ReadSome(pair.slave.get()), "a\x04\n");
}

TEST(TerminalTest, WhatWouldRaiseASignalIsLeftAndNamed) {
  const auto before = ::signal(SIGIO, SIG_IGN);
  const Pair pair;
  FlagsAfter(pair.slave.get(), O_ASYNC);
  ASSERT_THAT(WriteAll(pair.master.get(), "typed\n"), IsOk());
  Await(pair.slave.get());
  LocalDumpContext dump;
  dump.Add(pair.slave.get());
  dump.Add(pair.master.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  EXPECT_THAT(dump.notes, Contains(HasSubstr("6 bytes of input that nobody has read")));
  EXPECT_EQ(ReadSome(pair.slave.get()), "typed\n");
  ::signal(SIGIO, before);
}

TEST(TerminalTest, RefusesLinesThatAreLongerThanWhatWaits) {
  LocalDumpContext dump;
  std::uint32_t slave_id = 0;
  {
    const Pair pair;
    slave_id = dump.Add(pair.slave.get());
    dump.Add(pair.master.get());
    ASSERT_THAT(dump.DumpAll(), IsOk());
    dump.Forget();
    image::TtyDataEntry entry;
    entry.set_tty_id(dump.entries[1].tty().tty_info_id() & ~1u);
    entry.set_data("ab");
    entry.set_stasis_as_is(true);
    entry.add_stasis_lines(3);
    dump.AddRecord("tty-data", entry.SerializeAsString(), "");
  }
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(slave_id), StatusIs(StatusCode::kDataLoss, HasSubstr("longer")));
}

TEST(TerminalTest, RefusesWhatIsNotItsStarters) {
  const Pair pair;
  EXPECT_THAT(RoundTrip(pair.slave.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("outside the tree")));
}

TEST(TerminalTest, APseudoTerminalOfTheTreeComesBackWithItsNumber) {
  LocalDumpContext dump;
  std::uint32_t master_id = 0, slave_id = 0;
  std::string path;
  {
    const Pair pair;
    path = pair.path();
    termios raw = Settings(pair.slave.get());
    ::cfmakeraw(&raw);
    ASSERT_EQ(::tcsetattr(pair.slave.get(), TCSANOW, &raw), 0);
    const winsize size = {.ws_row = 33, .ws_col = 77, .ws_xpixel = 0, .ws_ypixel = 0};
    ASSERT_EQ(::ioctl(pair.slave.get(), TIOCSWINSZ, &size), 0);
    ASSERT_EQ(::fchmod(pair.slave.get(), 0601), 0);
    slave_id = dump.Add(pair.slave.get());
    master_id = dump.Add(pair.master.get());
    ASSERT_THAT(dump.DumpAll(), IsOk());
    dump.Forget();
  }
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> slave = restore.Restore(slave_id);
  ASSERT_THAT(slave, IsOk());
  const Result<UniqueFd> master = restore.Restore(master_id);
  ASSERT_THAT(master, IsOk());
  restore.Finish();
  EXPECT_EQ(::ptsname(master->get()), path);
  ASSERT_THAT(WriteAll(master->get(), "in"), IsOk());
  pollfd arrived = {.fd = slave->get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&arrived, 1, 10'000), 1);
  EXPECT_EQ(ReadSome(slave->get()), "in");
  winsize size = {};
  ASSERT_EQ(::ioctl(slave->get(), TIOCGWINSZ, &size), 0);
  EXPECT_EQ(size.ws_col, 77);
  struct stat st = {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777u, 0601u);
}

TEST(TerminalTest, ATakenNumberIsNotReplaced) {
  const Pair pair;
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(pair.master.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(id),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("is taken")));
}

TEST(TerminalTest, OneThatIsHungUpStaysSo) {
  Pair pair;
  pair.master.Reset();
  const RoundTrip trip(pair.slave.get());
  ASSERT_THAT(trip.status, IsOk());
  char byte = 0;
  EXPECT_EQ(::read(trip.restored.get(), &byte, 1), 0);
  EXPECT_EQ(::write(trip.restored.get(), &byte, 1), -1);
  EXPECT_EQ(errno, EIO);
}

TEST(TerminalTest, WithoutATerminalItIsNotRestored) {
  const Pair pair;
  LocalDumpContext dump;
  dump.external = pair.path();
  const std::uint32_t id = dump.Add(pair.slave.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const UniqueFd null = Fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
  restore.external = null.get();
  EXPECT_THAT(restore.Restore(id),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("tty: true")));
}

}  // namespace
}  // namespace stasis::engine
