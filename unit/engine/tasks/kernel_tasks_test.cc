#include "engine/tasks/kernel_tasks.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <latch>
#include <optional>
#include <thread>

#include "engine/base/unique_fd.h"

namespace stasis::engine {
namespace {

class KernelTasksTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<KernelTasks> tasks = KernelTasks::Open();
    if (!tasks.ok()) GTEST_SKIP() << tasks.status();
    tasks_.emplace(*std::move(tasks));
  }
  std::map<pid_t, KernelTask> Ours() {
    const UniqueFd proc(::open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC));
    auto threads = tasks_->ThreadsOf(proc.get());
    EXPECT_TRUE(threads.ok()) << threads.status();
    return threads.ok() ? *std::move(threads) : std::map<pid_t, KernelTask>();
  }
  // Of a thread that calls `set_up`, then waits for us to look. The counter of `set_up` may be off after it.
  template <typename SetUp>
  KernelTask OfThread(SetUp set_up) {
    std::latch is_set(1), seen(1);
    pid_t tid = 0;
    std::thread thread([&] {
      tid = ::gettid();
      stack_t given = {};  // by a sanitizer, which takes it back
      ::sigaltstack(nullptr, &given);
      set_up();
      is_set.count_down();
      seen.wait();
      ::prctl(PR_SET_TSC, PR_TSC_ENABLE);
      ::sigaltstack(&given, nullptr);
    });
    is_set.wait();
    const auto threads = Ours();
    seen.count_down();
    thread.join();
    EXPECT_TRUE(threads.contains(tid));
    return threads.contains(tid) ? threads.at(tid) : KernelTask();
  }
  std::optional<KernelTasks> tasks_;
};

TEST_F(KernelTasksTest, AFreshThreadIsAsItsLeader) {
  std::uint64_t clear_tid = 0;
  stack_t stack = {};
  const KernelTask task = OfThread([&] {
    ::prctl(PR_GET_TID_ADDRESS, &clear_tid);
    ::sigaltstack(nullptr, &stack);
  });
  EXPECT_EQ(task.clear_tid_address, clear_tid);
  EXPECT_EQ(task.stack_flags, static_cast<std::uint32_t>(stack.ss_flags));
  const auto threads = Ours();
  ASSERT_TRUE(threads.contains(::getpid()));
  KernelTask as_leader = threads.at(::getpid());
  as_leader.clear_tid_address = clear_tid;
  as_leader.stack = task.stack;
  as_leader.stack_bytes = task.stack_bytes;
  as_leader.stack_flags = task.stack_flags;
  EXPECT_EQ(task, as_leader);
}

TEST_F(KernelTasksTest, KnowsWhatAThreadSetForItself) {
  static std::array<char, 65536> room;
  const KernelTask task = OfThread([] {
    const stack_t stack = {.ss_sp = room.data(),
                           .ss_flags = static_cast<int>(1u << 31),  // SS_AUTODISARM
                           .ss_size = room.size()};
    EXPECT_EQ(::sigaltstack(&stack, nullptr), 0);
    EXPECT_EQ(::prctl(PR_SET_PDEATHSIG, SIGURG), 0);
    EXPECT_EQ(::prctl(PR_SET_SECUREBITS, SECBIT_NOROOT), 0);
    EXPECT_EQ(::prctl(PR_SET_TSC, PR_TSC_SIGSEGV), 0);
  });
  EXPECT_EQ(task.stack, reinterpret_cast<std::uint64_t>(room.data()));
  EXPECT_EQ(task.stack_bytes, room.size());
  EXPECT_EQ(task.stack_flags, 1u << 31);
  EXPECT_EQ(task.parent_death_signal, SIGURG);
  EXPECT_EQ(task.secure_bits, static_cast<std::uint32_t>(SECBIT_NOROOT));
  EXPECT_EQ(task.time_stamp_counter, PR_TSC_SIGSEGV);
}

TEST_F(KernelTasksTest, TellsAThreadApartThatLeftWhatItShared) {
  const KernelTask task = OfThread([] {
    EXPECT_EQ(::unshare(CLONE_FS), 0);
    EXPECT_EQ(::unshare(CLONE_NEWUTS), 0);
  });
  const auto threads = Ours();
  ASSERT_TRUE(threads.contains(::getpid()));
  const KernelTask& leader = threads.at(::getpid());
  EXPECT_EQ(task.files, leader.files);
  EXPECT_EQ(task.cgroups, leader.cgroups);
  EXPECT_NE(task.directories, leader.directories);
  EXPECT_NE(task.namespaces, leader.namespaces);
}

TEST_F(KernelTasksTest, NumbersThreadsAsTheReaderSeesThem) {
  const UniqueFd proc(::open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC));
  const pid_t outer = ::fork();
  if (outer == 0) {
    if (::unshare(CLONE_NEWPID) != 0) ::_exit(2);
    const UniqueFd inside(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
    const pid_t inner = ::fork();
    if (inner == 0) {  // 1 in its own namespace, of which nobody outside is a part
      auto tasks = KernelTasks::Open();
      if (!tasks.ok()) ::_exit(3);
      ::_exit(tasks->ThreadsOf(proc.get()).ok() ? 4 : 0);
    }
    const std::string path = std::to_string(inner);
    const UniqueFd other(::openat(inside.get(), path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    const auto threads = tasks_->ThreadsOf(other.get());
    int status = 0;
    ::waitpid(inner, &status, 0);
    const bool known = threads.ok() && threads->size() == 1 && threads->contains(inner);
    ::_exit(known ? WEXITSTATUS(status) : 6);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(outer, &status, 0), outer);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace stasis::engine
