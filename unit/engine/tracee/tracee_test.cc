#include "engine/tracee/tracee.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;
using ::stasis::testing::WaitForState;
using std::chrono::seconds;
using std::chrono::steady_clock;

// As a placeholder may be seized on its way out of execve(2). Here it is that of vfork(2), whose caller cannot stop
// before: so it is asked to, and comes to another stop first.
TEST(TraceeTest, StopsAlsoWhenAnotherStopComesFirst) {
  int channel[2];
  ASSERT_EQ(::pipe2(channel, O_CLOEXEC), 0);
  Child child([channel] {
    ::close(channel[1]);
    // NOLINTNEXTLINE(bugprone-unsafe-functions): programs call it
    if (::vfork() == 0) {
      char byte = 0;
      ::_exit(static_cast<int>(::read(channel[0], &byte, 1)));
    }
    return Sleep();
  });
  ::close(channel[0]);
  WaitForState(child.pid(), 'D');
  auto tracee = Tracee::Seize(child.pid(), PTRACE_O_TRACEVFORKDONE);
  ASSERT_THAT(tracee, IsOk());
  ASSERT_THAT(tracee->Interrupt(), IsOk());
  ::close(channel[1]);
  EXPECT_THAT(WaitUntilStopped(*tracee, steady_clock::now() + seconds(10)), IsOk());
}

}  // namespace
}  // namespace stasis::engine
