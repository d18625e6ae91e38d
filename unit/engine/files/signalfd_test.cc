#include <signal.h>
#include <sys/signalfd.h>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;

TEST(SignalfdTest, WatchesTheSameSignals) {
  sigset_t watched;
  sigemptyset(&watched);
  sigaddset(&watched, SIGUSR2);
  sigaddset(&watched, SIGRTMAX);
  const UniqueFd fd = Fd(::signalfd(-1, &watched, SFD_NONBLOCK));
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());

  ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &watched, nullptr), 0);
  ASSERT_EQ(::raise(SIGRTMAX), 0);
  signalfd_siginfo info = {};
  EXPECT_EQ(::read(trip.restored.get(), &info, sizeof(info)), ssize_t{sizeof(info)});
  EXPECT_EQ(info.ssi_signo, static_cast<std::uint32_t>(SIGRTMAX));
  EXPECT_EQ(Describe(trip.restored.get(), 1).flags, Describe(fd.get(), 1).flags);
  ASSERT_EQ(::pthread_sigmask(SIG_UNBLOCK, &watched, nullptr), 0);
}

}  // namespace
}  // namespace stasis::engine
