#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <cstring>
#include <map>
#include <thread>

#include "engine/image/schema/namespaces.pb.h"
#include "unit/engine/dump_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::stasis::testing::Sleep;
using ::stasis::testing::StatusIs;
using ::stasis::testing::WaitForState;
using ::testing::Contains;
using ::testing::HasSubstr;

pid_t PidIn(const SharedWords& words, int i) { return static_cast<pid_t>(words[i].load()); }

const ProcessImage& ProcessOf(const CheckpointImages& images, pid_t pid) {
  static const ProcessImage kNone;
  const auto found = std::ranges::find(images.processes, pid, &ProcessImage::pid);
  EXPECT_NE(found, images.processes.end()) << pid;
  return found == images.processes.end() ? kNone : *found;
}

TEST(DumpTasksTest, TheTreeHasItsShape) {
  SharedWords words;
  Child child = Prepared(words, [&] {
    if (::fork() == 0) {
      testing::EndWithParent();
      ::setsid();
      words[1] = static_cast<std::uint64_t>(::getpid());
      Sleep();
    }
    const pid_t zombie = ::fork();
    if (zombie == 0) ::_exit(3);
    std::thread([&] {
      words[3] = static_cast<std::uint64_t>(::gettid());
      Sleep();
    }).detach();
    EXPECT_TRUE(words.WaitAbove(1, 0) && words.WaitAbove(3, 0));
    WaitForState(zombie, 'Z');
    words[2] = static_cast<std::uint64_t>(zombie);
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  ASSERT_EQ(loaded.processes.size(), 3u);
  const ProcessImage& root = loaded.processes.front();
  EXPECT_EQ(root.parent(), 0);
  EXPECT_EQ(root.tree.sid(), 0u);  // the test's session: not in the tree
  ASSERT_EQ(root.threads.size(), 2u);
  EXPECT_EQ(root.threads[1].tid, PidIn(words, 3));
  const ProcessImage& session = ProcessOf(loaded, PidIn(words, 1));
  EXPECT_EQ(session.parent(), child.pid());
  EXPECT_EQ(session.tree.sid(), session.tree.pid());
  EXPECT_EQ(session.tree.pgid(), session.tree.pid());
  const ProcessImage& zombie = ProcessOf(loaded, PidIn(words, 2));
  EXPECT_TRUE(zombie.zombie);
  EXPECT_EQ(zombie.leader().core.tc().exit_code(), 3u << 8);
}

TEST(DumpTasksTest, AttributesAreAsProcSays) {
  SharedWords words;
  Child child = Prepared(words, [] {
    ::umask(027);
    ::prctl(PR_SET_NAME, "odd)name");
    ::setpriority(PRIO_PROCESS, 0, 7);
    const rlimit limit = {.rlim_cur = 123, .rlim_max = 456};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    ::prctl(PR_SET_DUMPABLE, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR2);
    const gid_t groups[] = {11, 12};
    (void)!::setgroups(2, groups);
    (void)!::setresgid(101, 102, 103);
    (void)!::setresuid(0, 1002, 1003);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR2);  // a change of ids clears it
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const ProcessImage& root = loaded.processes.front();
  const image::TaskCoreEntry& task = root.leader().core.tc();
  const image::ThreadCoreEntry& thread = root.leader().core.thread_core();
  EXPECT_EQ(root.fs.umask(), 027u);
  EXPECT_EQ(task.comm(), "odd)name");
  EXPECT_EQ(task.task_state(), 1u);
  EXPECT_EQ(task.rlimits().rlimits(RLIMIT_NOFILE).cur(), 123u);
  EXPECT_EQ(task.rlimits().rlimits(RLIMIT_NOFILE).max(), 456u);
  EXPECT_TRUE(task.child_subreaper());
  EXPECT_EQ(root.mm.dumpable(), 0);
  EXPECT_EQ(thread.sched_nice(), 7);
  EXPECT_EQ(thread.pdeath_sig(), std::uint32_t{SIGUSR2});
  EXPECT_EQ(thread.creds().euid(), 1002u);
  EXPECT_EQ(thread.creds().sgid(), 103u);
  EXPECT_THAT(thread.creds().groups(), ::testing::ElementsAre(11, 12));
  EXPECT_EQ(thread.creds().cap_eff(0), 0u);
  EXPECT_NE(thread.creds().cap_prm(0), 0u);
}

TEST(DumpTasksTest, SignalStateIsWhole) {
  SharedWords words;
  static char alternate[16384];
  Child child = Prepared(words, [] {
    struct sigaction action = {};
    action.sa_handler = [](int) {};
    action.sa_flags = SA_ONSTACK | SA_RESTART;
    ::sigaction(SIGUSR1, &action, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    const stack_t stack = {.ss_sp = alternate, .ss_flags = 0, .ss_size = sizeof(alternate)};
    ::sigaltstack(&stack, nullptr);
    sigset_t blocked;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGUSR1);
    ::sigaddset(&blocked, SIGRTMIN);
    ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
    for (int i = 1; i <= 3; ++i) ::sigqueue(::getpid(), SIGRTMIN, {.sival_int = i});
    ::syscall(SYS_tgkill, ::getpid(), ::gettid(), SIGUSR1);
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const image::CoreEntry& core = loaded.processes.front().leader().core;
  ASSERT_EQ(core.tc().sigactions_size(), 62);
  const image::SaEntry& usr1 = core.tc().sigactions(SIGUSR1 - 2);  // 9 is left out before it
  EXPECT_GT(usr1.sigaction(), 1u);
  EXPECT_EQ(usr1.flags() & (SA_ONSTACK | SA_RESTART), std::uint64_t{SA_ONSTACK | SA_RESTART});
  EXPECT_EQ(core.tc().sigactions(SIGPIPE - 2).sigaction(), 1u);
  EXPECT_EQ(core.thread_core().sas().ss_sp(), reinterpret_cast<std::uint64_t>(alternate));
  EXPECT_EQ(core.thread_core().sas().ss_flags(), 0u);
  EXPECT_EQ(core.thread_core().blk_sigset(),
            (std::uint64_t{1} << (SIGUSR1 - 1)) | (std::uint64_t{1} << (SIGRTMIN - 1)));
  ASSERT_EQ(core.tc().signals_s().signals_size(), 3);
  siginfo_t last = {};
  std::memcpy(&last, core.tc().signals_s().signals(2).siginfo().data(), sizeof(last));
  EXPECT_EQ(last.si_value.sival_int, 3);
  EXPECT_EQ(core.thread_core().signals_p().signals_size(), 1);
}

TEST(DumpTasksTest, TimersHaveTheirRest) {
  SharedWords words;
  Child child = Prepared(words, [] {
    const itimerval real = {.it_interval = {.tv_sec = 5, .tv_usec = 6},
                            .it_value = {.tv_sec = 1000, .tv_usec = 0}};
    ::setitimer(ITIMER_REAL, &real, nullptr);
    sigevent event = {};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    event.sigev_value.sival_int = 42;
    timer_t timer;
    ::timer_create(CLOCK_MONOTONIC, &event, &timer);
    const itimerspec rest = {.it_interval = {.tv_sec = 7, .tv_nsec = 8},
                             .it_value = {.tv_sec = 2000, .tv_nsec = 0}};
    ::timer_settime(timer, 0, &rest, nullptr);
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const image::TaskTimersEntry& timers = loaded.processes.front().leader().core.tc().timers();
  EXPECT_EQ(timers.real().isec(), 5u);
  EXPECT_EQ(timers.real().iusec(), 6u);
  EXPECT_GT(timers.real().vsec(), 900u);
  ASSERT_EQ(timers.posix_size(), 1);
  EXPECT_EQ(timers.posix(0).si_signo(), std::uint32_t{SIGUSR1});
  EXPECT_EQ(timers.posix(0).sival_ptr() & 0xffffffff, 42u);
  EXPECT_EQ(timers.posix(0).insec(), 8u);
  EXPECT_GT(timers.posix(0).vsec(), 1900u);
}

TEST(DumpTasksTest, AStoppedTreeIsDumpedAsStoppedAndStaysSo) {
  SharedWords words;
  // In a group of its own: in one that is orphaned, as the tests' may be, SIGTSTP does nothing (setpgid(2)).
  Child child = Prepared(words, [] { ::setpgid(0, 0); });
  ::kill(child.pid(), SIGTSTP);
  WaitForState(child.pid(), 'T');
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const image::TaskCoreEntry& task = loaded.processes.front().leader().core.tc();
  EXPECT_EQ(task.task_state(), 3u);
  EXPECT_EQ(task.stop_signo(), std::uint32_t{SIGTSTP});
  WaitForState(child.pid(), 'T');
  ::kill(child.pid(), SIGCONT);
  WaitForState(child.pid(), 'S');
}

// A filter that lets everything pass but getpgid(2), which gets `error`.
void Filter(std::uint32_t error) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgid, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter = {.len = 4, .filter = program};
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter);
}

TEST(DumpTasksTest, SeccompFiltersAreKeptOldestFirstAndInForce) {
  SharedWords words;
  Child child = Program([&] {
    Filter(ENOLINK);
    Filter(EXDEV);
    words[0] = 1;
    while (words[1] == 0) ::usleep(1000);
    words[2] = ::getpgid(0) < 0 ? static_cast<std::uint64_t>(errno) : 0;
    return Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const image::ThreadCoreEntry& thread = loaded.processes.front().leader().core.thread_core();
  EXPECT_EQ(thread.seccomp_mode(), image::SECCOMP_FILTER);
  EXPECT_EQ(thread.creds().no_new_privs(), 1u);
  ASSERT_EQ(loaded.seccomp.seccomp_filters_size(), 2);
  const auto error_of = [&](std::uint32_t index) {
    sock_filter program[4];
    const std::string& bytes = loaded.seccomp.seccomp_filters(static_cast<int>(index)).filter();
    EXPECT_EQ(bytes.size(), sizeof(program));
    std::memcpy(program, bytes.data(), sizeof(program));
    return program[2].k & SECCOMP_RET_DATA;
  };
  const image::SeccompFilter& oldest =
      loaded.seccomp.seccomp_filters(static_cast<int>(thread.seccomp_filter()));
  EXPECT_EQ(error_of(thread.seccomp_filter()), std::uint32_t{ENOLINK});
  EXPECT_EQ(error_of(oldest.prev()), std::uint32_t{EXDEV});
  words[1] = 1;
  ASSERT_TRUE(words.WaitAbove(2, 0));
  EXPECT_NE(words[2], 0u);
}

// Spins in a restartable sequence (rseq(2)) of glibc's registration, and starts it anew whenever it was
// aborted. `word` counts the aborts.
extern "C" const char stasis_test_abort[];
[[noreturn]] void SpinInSequence(std::atomic<std::uint64_t>& word) {
  char* const area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  asm volatile(
      ".pushsection .data\n .balign 32\n"
      "9: .long 0, 0\n .quad 1f, 2f - 1f, stasis_test_abort\n"
      ".popsection\n"
      "3: lock incq (%1)\n"
      "leaq 9b(%%rip), %%rax\n"
      "movq %%rax, 8(%0)\n"
      "1: pause\n jmp 1b\n"
      "2: ud2\n"
      ".long 0x53053053\n"  // RSEQ_SIG, which the kernel looks for before the abort handler
      ".globl stasis_test_abort\n"
      "stasis_test_abort: jmp 3b\n" ::"r"(area),
      "r"(&word)
      : "rax", "memory");
  __builtin_unreachable();
}

TEST(DumpTasksTest, ARestartableSequenceIsAbortedInTheImageAndInTheProgram) {
  if (__rseq_size == 0) GTEST_SKIP() << "the C library has registered no rseq";
  SharedWords words;
  Child child = Program([&]() -> int { SpinInSequence(words[0]); });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  for (int round = 0; round < 20; ++round) {
    const std::uint64_t before = words[0];
    MemoryImages images;
    const CheckpointImages loaded = ImagesOf(child.pid(), images);
    const image::CoreEntry& core = loaded.processes.front().leader().core;
    EXPECT_NE(core.thread_core().rseq_entry().rseq_abi_pointer(), 0u);
    EXPECT_EQ(core.thread_info().gpregs().ip(), reinterpret_cast<std::uint64_t>(stasis_test_abort));
    EXPECT_TRUE(words.WaitAbove(0, before));
  }
}

TEST(DumpTasksTest, ANamespacedTreeHasItsOwnPidsAndNames) {
  SharedWords words;
  Child outer = Program([&] {
    if (::unshare(CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWNET) != 0) return 1;
    (void)::sethostname("inner", 5);
    if (const pid_t init = ::fork(); init != 0) {
      words[1] = static_cast<std::uint64_t>(init);
      if (const pid_t stranger = ::fork(); stranger == 0) {
        words[2] = 1;
        return Sleep();
      }
      return Sleep();
    }
    testing::EndWithParent();  // and with it, the init of its namespace, all others
    if (::setsid() < 0) return 1;
    words[0] = 1;
    return Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(0, 0) && words.WaitAbove(1, 0) && words.WaitAbove(2, 0));
  MemoryImages images;
  const auto report = DumpTo(PidIn(words, 1), images);
  ASSERT_THAT(report, IsOk());
  EXPECT_THAT(report->notes, Contains(HasSubstr("not part of the checkpoint")));
  const auto loaded = LoadCheckpoint(images);
  ASSERT_THAT(loaded, IsOk());
  const ProcessImage& root = loaded->processes.front();
  EXPECT_EQ(root.pid(), 1);
  EXPECT_EQ(root.tree.sid(), 1u);
  EXPECT_NE(root.ids.uts_ns_id(), loaded->inventory.root_ids().uts_ns_id());
  EXPECT_EQ(root.ids.ipc_ns_id(), loaded->inventory.root_ids().ipc_ns_id());
  const auto names =
      ReadOne<image::UtsnsEntry>(images, ImageName("utsns", root.ids.uts_ns_id()), "utsns");
  ASSERT_THAT(names, IsOk());
  EXPECT_EQ(names->nodename(), "inner");
  const auto mounts = ReadRecords<image::MntEntry>(
      images, ImageName("mountpoints", root.ids.mnt_ns_id()), "mountpoints");
  ASSERT_THAT(mounts, IsOk());
  EXPECT_EQ(mounts->back().mountpoint(), "/");
}

TEST(DumpTasksTest, ATimerThatFiresDuringTheDumpIsArmedOrItsSignalIsPending) {
  SharedWords words;
  Child child = Prepared(words, [] {
    struct sigaction action = {};
    action.sa_handler = [](int) {};
    ::sigaction(SIGALRM, &action, nullptr);
    const itimerval often = {.it_interval = {0, 1000}, .it_value = {0, 1000}};
    ::setitimer(ITIMER_REAL, &often, nullptr);
  });
  for (int dump = 0; dump < 10; ++dump) {
    MemoryImages images;
    const CheckpointImages loaded = ImagesOf(child.pid(), images);
    const image::TaskCoreEntry& core = loaded.processes.front().leader().core.tc();
    const bool is_armed = core.timers().real().vsec() != 0 || core.timers().real().vusec() != 0;
    EXPECT_TRUE(is_armed || core.signals_s().signals_size() != 0);
  }
}

TEST(DumpTasksTest, AnIpcNamespaceHasItsSettings) {
  SharedWords words;
  const Child child = Prepared(words, [] {
    if (::unshare(CLONE_NEWIPC) != 0) ::_exit(1);
    const int fd = ::open("/proc/sys/kernel/msgmax", O_WRONLY | O_CLOEXEC);
    if (::write(fd, "4711", 4) != 4) ::_exit(1);
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const auto settings = ReadOne<image::IpcVarEntry>(
      images, ImageName("ipcns-var", loaded.processes.front().ids.ipc_ns_id()), "ipcns-var");
  ASSERT_THAT(settings, IsOk());
  EXPECT_EQ(settings->msg_ctlmax(), 4711u);
  EXPECT_EQ(settings->sem_ctls_size(), 4);
  EXPECT_GT(settings->shm_ctlmax(), 0u);
  EXPECT_NE(ReadFileAt(AT_FDCWD, "/proc/sys/kernel/msgmax").value_or(""), "4711\n");
}

TEST(DumpTasksTest, OnlyMountsFromOutsideAreToBeGivenAgain) {
  SharedWords words;
  const Child child = Prepared(words, [] {
    if (::unshare(CLONE_NEWNS) != 0) ::_exit(1);
    ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    if (::mount("own", "/srv", "tmpfs", 0, nullptr) != 0) ::_exit(1);
    if (::mount("/srv", "/mnt", nullptr, MS_BIND, nullptr) != 0) ::_exit(1);
  });
  for (const bool known : {false, true}) {
    MemoryImages images;
    DumpRequest request = AllAtOnce();
    request.root = child.pid();
    if (known) request.outside_mounts = {"/mnt"};
    ASSERT_THAT(Dump(request, images), IsOk());
    const auto loaded = LoadCheckpoint(images);
    ASSERT_THAT(loaded, IsOk());
    const auto mounts = ReadRecords<image::MntEntry>(
        images, ImageName("mountpoints", loaded->processes.front().ids.mnt_ns_id()), "mountpoints");
    ASSERT_THAT(mounts, IsOk());
    std::map<std::string, std::string> keys;
    for (const image::MntEntry& mount : *mounts)
      keys.try_emplace(mount.mountpoint(), mount.ext_key());
    EXPECT_EQ(keys["/mnt"], "/mnt");
    EXPECT_EQ(keys["/srv"], known ? "" : "/srv");
    EXPECT_EQ(keys["/"], "");
  }
}

}  // namespace
}  // namespace stasis::engine
