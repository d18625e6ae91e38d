#include "engine/files/network_lock.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/base/run_tool.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::testing::HasSubstr;

constexpr char kRunId[] = "0c3f5a7e-network-lock-test";

// Invalid where a network namespace cannot be had.
UniqueFd FreshNetwork() {
  UniqueFd ns;
  std::thread([&ns] {
    if (::unshare(CLONE_NEWNET) != 0) return;
    Result<UniqueFd> opened = OpenAt(AT_FDCWD, "/proc/thread-self/ns/net", O_RDONLY);
    if (opened.ok()) ns = *std::move(opened);
  }).join();
  return ns;
}

Result<std::string> TablesOf(int ns) {
  std::string tables;
  RETURN_IF_ERROR(InNamespace(ns, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(tables, RunTool({"nft", "list", "ruleset"}));
    return OkStatus();
  }));
  return tables;
}

class NetworkLockTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ns_ = FreshNetwork();
    if (!ns_) GTEST_SKIP() << "no right to a network namespace";
    const Result<std::string> tables = TablesOf(ns_.get());
    if (!tables.ok()) GTEST_SKIP() << Message(tables.status());
    ASSERT_EQ(*tables, "");
  }
  UniqueFd Network() const { return UniqueFd(::fcntl(ns_.get(), F_DUPFD_CLOEXEC, 0)); }
  std::string Tables() const { return TablesOf(ns_.get()).value_or("?"); }

  UniqueFd ns_;
};

TEST_F(NetworkLockTest, PassesOnlyWhatIsMarkedAndEndsWithItsObject) {
  {
    const Result<NetworkLock> lock = NetworkLock::TakeWhole(Network(), kRunId);
    ASSERT_THAT(lock, IsOk());
    for (const char* const hook : {"hook input", "hook output"}) {
      EXPECT_THAT(Tables(), HasSubstr(hook));
    }
    EXPECT_THAT(Tables(), HasSubstr("meta mark 0x0000c114 accept"));
  }
  EXPECT_EQ(Tables(), "");
}

TEST_F(NetworkLockTest, EndsWithAProcessThatIsKilled) {
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const Result<NetworkLock> lock = NetworkLock::TakeWhole(Network(), kRunId);
    const char taken = lock.ok() ? 1 : 0;
    (void)!::write(ready[1], &taken, 1);
    ::pause();
  }
  char taken = 0;
  ASSERT_EQ(::read(ready[0], &taken, 1), 1);
  EXPECT_EQ(taken, 1);
  EXPECT_THAT(Tables(), HasSubstr(kRunId));
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(Tables(), "");
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(NetworkLockTest, StaysWhenItIsKeptUntilItIsUnlocked) {
  {
    Result<NetworkLock> lock = NetworkLock::TakeWhole(Network(), kRunId);
    ASSERT_THAT(lock, IsOk());
    ASSERT_THAT(lock->Keep(), IsOk());
  }
  EXPECT_THAT(Tables(), HasSubstr(std::string("table inet CRIU-") + kRunId));
  EXPECT_THAT(UnlockNetwork(ns_.get(), kRunId), IsOk());
  EXPECT_EQ(Tables(), "");
  EXPECT_THAT(UnlockNetwork(ns_.get(), kRunId), IsOk());  // once more does no harm
}

}  // namespace
}  // namespace stasis::engine
