#include "engine/tracee/fd_channel.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using testing::FreshProgram;

bool SameFile(int a, int b) {
  struct stat first = {}, second = {};
  return ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 && first.st_ino == second.st_ino;
}

TEST(FdChannelTest, ManyDescriptorsArriveInOrderAndCanBeTaken) {
  FreshProgram program(65534);
  RemoteSyscalls& remote = *program.process().remote;
  Result<FdChannel> channel = FdChannel::Open(remote, program.process().pidfd.get());
  ASSERT_THAT(channel, IsOk());
  std::vector<UniqueFd> ours;
  std::vector<int> numbers;
  for (int i = 0; i < 300; ++i) {  // more than one message carries
    ours.emplace_back(static_cast<int>(::syscall(SYS_memfd_create, "x", MFD_CLOEXEC)));
    numbers.push_back(ours.back().get());
  }
  const Result<std::vector<int>> theirs = channel->Send(remote, numbers);
  ASSERT_THAT(theirs, IsOk());
  ASSERT_EQ(theirs->size(), numbers.size());
  for (const std::size_t i : {0u, 252u, 253u, 299u}) {
    const Result<UniqueFd> back = channel->Take((*theirs)[i]);
    ASSERT_THAT(back, IsOk());
    EXPECT_TRUE(SameFile(back->get(), numbers[i])) << i;
    EXPECT_EQ(*remote.Call("fcntl", SYS_fcntl, (*theirs)[i], F_GETFD), FD_CLOEXEC);
  }
}

TEST(FdChannelTest, MovesAndLeavesNothingBehind) {
  FreshProgram program;
  RemoteSyscalls& remote = *program.process().remote;
  const std::uint64_t lowest = *remote.Call("dup", SYS_dup, 0);
  Result<FdChannel> channel = FdChannel::Open(remote, program.process().pidfd.get());
  ASSERT_THAT(channel, IsOk());
  ASSERT_THAT(channel->MoveTo(remote, 200), IsOk());
  EXPECT_EQ(channel->number(), 200);
  const int fd = STDERR_FILENO;
  const Result<std::vector<int>> theirs = channel->Send(remote, std::span(&fd, 1));
  ASSERT_THAT(theirs, IsOk());
  EXPECT_EQ(static_cast<std::uint64_t>(theirs->front()), lowest + 1);
  ASSERT_THAT(channel->Close(remote), IsOk());
  EXPECT_EQ(ErrnoOf(remote.Call("fcntl", SYS_fcntl, 200, F_GETFD).status()), EBADF);
}

TEST(FdChannelTest, AFullTableIsAnErrorAndTakesNone) {
  FreshProgram program;
  RemoteSyscalls& remote = *program.process().remote;
  Result<FdChannel> channel = FdChannel::Open(remote, program.process().pidfd.get());
  ASSERT_THAT(channel, IsOk());
  const std::uint64_t lowest = *remote.Call("dup", SYS_dup, 0);
  const std::uint64_t limit = *remote.PutValue(rlimit{lowest + 3, lowest + 3});
  ASSERT_THAT(remote.Call("setrlimit", SYS_setrlimit, RLIMIT_NOFILE, limit), IsOk());
  const std::vector<int> fds(5, STDERR_FILENO);
  EXPECT_THAT(channel->Send(remote, fds), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_EQ(*remote.Call("dup", SYS_dup, 0), lowest + 1);
}

}  // namespace
}  // namespace stasis::engine
