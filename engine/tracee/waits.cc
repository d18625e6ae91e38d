// Source  signal(7), proc_pid_syscall(5), proc_pid_wchan(5), futex(2), poll(2), nanosleep(2);
//         kernel/time/hrtimer.c, kernel/futex/waitwake.c, fs/select.c, kernel/sched/debug.c; tested on 6.18
// Rule    poll, nanosleep, clock_nanosleep without TIMER_ABSTIME and FUTEX_WAIT give -ERESTART_RESTARTBLOCK
//         when they are interrupted: the kernel has noted when they are to end. Nobody can read that note.
// Rule    A thread that was restarted sits in restart_syscall(2), with the arguments of the call that it
//         goes on with; the kernel function in which it sleeps tells which that is.
// Rule    io_uring_enter(2) says EINTR only when it has taken no request; a time limit is in what
//         IORING_ENTER_EXT_ARG leads to (io_cqring_wait() in io_uring/io_uring.c).
// Rule    se.exec_start of a sleeping task is when it last began to run, by the clock of its processor.
//         Processors' clocks differ (time for interrupts and the hypervisor is not counted), and none is
//         ahead of real time: what we take for the time slept is never more than it was.
#include "engine/tracee/waits.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#include <cerrno>
#include <string>
#include <vector>

#include "engine/base/io.h"
#include "engine/proc/sched.h"
#include "engine/proc/task.h"
#include "engine/tracee/task_folder.h"

namespace stasis::engine {
namespace {

using std::chrono::nanoseconds;

bool IsProcessorClock(std::uint64_t argument) {
  const auto clock = static_cast<clockid_t>(argument);
  return clock < 0 || clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID;
}

struct EndlessWait {
  long number;
  std::size_t limit;  // the argument that tells
  enum { kAlways, kNull, kNegative, kNoExtension } endless_if;
};
// Asynchronous I/O contexts cannot be dumped, but a dump that is refused disturbs them as well.
constexpr EndlessWait kEndlessWaits[] = {
    {SYS_epoll_wait, 3, EndlessWait::kNegative},
    {SYS_epoll_pwait, 3, EndlessWait::kNegative},
    {SYS_epoll_pwait2, 3, EndlessWait::kNull},
    {SYS_rt_sigtimedwait, 2, EndlessWait::kNull},
    {SYS_semtimedop, 3, EndlessWait::kNull},
    {SYS_semop, 0, EndlessWait::kAlways},
    {SYS_io_getevents, 4, EndlessWait::kNull},
    {SYS_io_pgetevents, 4, EndlessWait::kNull},
    {SYS_io_uring_enter, 3, EndlessWait::kNoExtension},
};

// The call that restart_syscall(2) goes on with. `where`: the function that sleeps, but for those of the
// scheduler, to which those of nanosleep(2) belong, proc_pid_wchan(5).
std::optional<long> Restarted(std::string_view where, std::uint64_t first_argument) {
  const auto names = [where](std::string_view part) { return where.find(part) != where.npos; };
  constexpr std::uint64_t kLowestAddress =
      4096;  // which nanosleep(2) has; other clocks are small numbers
  if (names("poll")) return SYS_poll;
  if (names("futex")) return SYS_futex;
  if (names("cpu_nanosleep")) return SYS_clock_nanosleep;
  if (names("nanosleep") || names("syscall")) {
    return first_argument < kLowestAddress ? SYS_clock_nanosleep : SYS_nanosleep;
  }
  return std::nullopt;
}

// A call in which a thread sleeps.
struct SleepingCall {
  arch::SystemCall call;
  bool restarted = false;
};

Result<SleepingCall> ReadCall(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, folder + "/syscall"));
  const std::optional<SyscallText> call = ParseSyscall(text);
  if (!call) return NotFound("not in a system call");
  SleepingCall sleeping = {.call = {.number = call->number, .arguments = call->arguments}};
  if (call->number == SYS_restart_syscall) {
    ASSIGN_OR_RETURN(const std::string where, ReadFileAt(AT_FDCWD, folder + "/wchan"));
    const std::optional<long> number = Restarted(where, call->arguments[0]);
    if (!number) return NotFound("restarted, we do not know what");
    sleeping.call.number = *number;
    sleeping.restarted = true;
  }
  return sleeping;
}

Result<SchedulerText> ReadScheduler(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, folder + "/sched"));
  return ParseScheduler(text);
}

// The clocks by which the kernel notes when a task began to run, one a processor.
class ProcessorClocks {
 public:
  ProcessorClocks() { good_ = ::sched_getaffinity(0, sizeof(ours_), &ours_) == 0; }
  ProcessorClocks(const ProcessorClocks&) = delete;
  ProcessorClocks& operator=(const ProcessorClocks&) = delete;
  ~ProcessorClocks() {
    if (moved_) ::sched_setaffinity(0, sizeof(ours_), &ours_);
  }

  /// Not later than now. Nothing when we may not run on that processor.
  std::optional<nanoseconds> Now(int processor) {
    if (!good_ || processor < 0 || processor >= CPU_SETSIZE) return std::nullopt;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    if (::sched_setaffinity(0, sizeof(one), &one) != 0) return std::nullopt;
    moved_ = true;
    // Makes the kernel note that we run now (task_sched_runtime).
    timespec used;
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    const auto scheduler = ReadScheduler("/proc/thread-self");
    if (!scheduler.ok()) return std::nullopt;
    return scheduler->exec_start;
  }

 private:
  cpu_set_t ours_;
  bool good_ = false, moved_ = false;
};

struct Seen {
  WaitsBeforeFreeze::Wait wait;
  nanoseconds began{0};  // by the clock of
  int processor = -1;
};

// The order is what proves it: the thread slept in `call` at some time after it was counted.
Result<Seen> LookAt(const std::string& folder) {
  ASSIGN_OR_RETURN(const SleepingCall hint, ReadCall(folder));
  if (!hint.restarted && !TimedWaitOf(hint.call)) return NotFound("not in a wait for some time");
  ASSIGN_OR_RETURN(const SchedulerText counted, ReadScheduler(folder));
  ASSIGN_OR_RETURN(const SleepingCall sleeping, ReadCall(folder));
  ASSIGN_OR_RETURN(const std::string stat_text, ReadFileAt(AT_FDCWD, folder + "/stat"));
  ASSIGN_OR_RETURN(const TaskStat stat, ParseTaskStat(stat_text));
  ASSIGN_OR_RETURN(const SchedulerText scheduler, ReadScheduler(folder));
  return Seen{.wait = {.call = sleeping.call,
                       .restarted = sleeping.restarted,
                       .slept = std::nullopt,
                       .voluntary_switches = counted.voluntary_switches},
              .began = scheduler.exec_start,
              .processor = stat.processor};
}

}  // namespace

std::optional<TimedWait> TimedWaitOf(const arch::SystemCall& call) {
  const auto& arguments = call.arguments;
  switch (call.number) {
    case SYS_poll:
      if (static_cast<int>(arguments[2]) < 0) return std::nullopt;
      return TimedWait{.call = call, .limit = 2, .in_milliseconds = true};
    case SYS_nanosleep:
      return TimedWait{.call = call, .limit = 0, .rest = 1};
    case SYS_clock_nanosleep:
      if ((arguments[1] & TIMER_ABSTIME) != 0) return std::nullopt;
      return TimedWait{
          .call = call, .limit = 2, .rest = 3, .of_processor = IsProcessorClock(arguments[0])};
    case SYS_futex:
      if ((arguments[1] & FUTEX_CMD_MASK) != FUTEX_WAIT || arguments[3] == 0) return std::nullopt;
      return TimedWait{.call = call, .limit = 3};
    default:
      return std::nullopt;
  }
}

bool EndedByStop(const arch::SystemCall& call) {
  if (call.result != -EINTR) return false;
  for (const EndlessWait& wait : kEndlessWaits) {
    if (wait.number != call.number) continue;
    const std::uint64_t limit = call.arguments[wait.limit];
    switch (wait.endless_if) {
      case EndlessWait::kAlways:
        return true;
      case EndlessWait::kNull:
        return limit == 0;
      case EndlessWait::kNegative:
        return static_cast<int>(limit) < 0;
      case EndlessWait::kNoExtension:
        return (limit & IORING_ENTER_EXT_ARG) == 0;
    }
  }
  return false;
}

nanoseconds EarlierStops::Slept(pid_t tid, const arch::SystemCall& call, bool restarted,
                                std::uint64_t voluntary_switches, nanoseconds slept) {
  const auto last = last_.find(tid);
  // One switch to sleep on, one for this stop: it has not been out of the call in between.
  if (restarted && last != last_.end() && last->second.call.number == call.number &&
      last->second.call.arguments == call.arguments &&
      last->second.voluntary_switches + 2 == voluntary_switches) {
    slept += last->second.slept;
  }
  last_.insert_or_assign(tid, Stop{call, voluntary_switches, slept});
  return slept;
}

void EarlierStops::Recount(pid_t tid, std::uint64_t voluntary_switches) {
  const auto last = last_.find(tid);
  if (last != last_.end()) last->second.voluntary_switches = voluntary_switches;
}

WaitsBeforeFreeze WaitsBeforeFreeze::Look(const std::vector<std::pair<pid_t, pid_t>>& threads) {
  WaitsBeforeFreeze before;
  std::map<pid_t, Seen> seen;
  for (const auto& [pid, tid] : threads) {
    const Result<Seen> thread = LookAt(TaskFolder(pid, tid));
    if (thread.ok()) seen.emplace(tid, *thread);
  }

  ProcessorClocks clocks;
  std::map<int, std::optional<nanoseconds>> now;
  for (auto& [tid, thread] : seen) {
    const auto [clock, is_new] = now.try_emplace(thread.processor);
    if (is_new) clock->second = clocks.Now(thread.processor);
    if (clock->second && *clock->second >= thread.began) {
      thread.wait.slept = *clock->second - thread.began;
    }
    before.waits_.emplace(tid, thread.wait);
  }
  return before;
}

std::optional<WaitsBeforeFreeze::Wait> WaitsBeforeFreeze::Find(
    pid_t tid, const arch::SystemCall& call, std::uint64_t voluntary_switches) const {
  const auto found = waits_.find(tid);
  if (found == waits_.end() || found->second.call.arguments != call.arguments) return std::nullopt;
  Wait wait = found->second;
  const bool is_restarted = call.number == SYS_restart_syscall;
  if (!is_restarted && call.number != wait.call.number) return std::nullopt;
  // It slept when it was counted, and going to sleep for our stop is the only switch since.
  if (voluntary_switches == wait.voluntary_switches + 1) return wait;
  // It woke in between; restarted, it is in the same call: a stop would have to come between two of its own.
  if (!is_restarted || !wait.restarted) return std::nullopt;
  wait.slept.reset();
  return wait;
}

}  // namespace stasis::engine
