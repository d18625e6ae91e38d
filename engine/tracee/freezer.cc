// Source  ptrace(2), execve(2), waitid(2); tested on 6.18
// Rule    A thread that executes a program ends the others of its process, and waits until they are reaped, those
//         that are traced by their tracer, with the lock that PTRACE_SEIZE of any thread of that process waits
//         for (cred_guard_mutex; de_thread() in fs/exec.c, ptrace_attach()). So somebody else has to reap for
//         a thread that hangs in PTRACE_SEIZE; any thread of its process may (wait(2), __WNOTHREAD).
// Rule    waitid(2) tells a tracer of stops, whatever it asks for (wait_task_stopped() in kernel/exit.c).
// Rule    The kernel's own threads among those of a process (task_folder.h) could be seized, but an interrupt ends the
//         request that they work at with EINTR. They run on: what is under way, a ring's dump waits for
//         (files/io_uring.cc).
// Rule    A thread that executes a program has the number of its process from then on. Of the thread that had
//         it, and of its own number, waitid(2) says ECHILD.
#include "engine/tracee/freezer.h"

#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "engine/base/in_halves.h"
#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/tracee/task_folder.h"

namespace stasis::engine {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// For one attempt. A thread that runs stops in microseconds, one that waits for a processor (or is
// throttled by its cgroup) when it has one.
constexpr milliseconds kStopTimeout{500};
constexpr milliseconds kSleeperTimeout{50};  // ... for one that is found in uninterruptible sleep
constexpr milliseconds kPatience{2000};      // between attempts, while all others run
constexpr milliseconds kHang{10};            // so long nothing takes that nobody else waits for
constexpr unsigned kOptions = PTRACE_O_TRACESYSGOOD;

// True when `tid`, a tracee of any thread of ours, has ended, or is no tracee of ours any more. Its stops are left
// for others.
bool Reap(pid_t tid) {
  siginfo_t info = {};
  const auto id = static_cast<id_t>(tid);
  const int options = WEXITED | WNOHANG | __WALL;
  if (::waitid(P_PID, id, &info, options | WNOWAIT) != 0) return errno == ECHILD;
  if (info.si_pid != tid) return false;
  if (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED) return false;
  return ::waitid(P_PID, id, &info, options) == 0;
}

// What may be had of a thread that cannot be seized.
enum class Refused { kEnded, kIsOurs, kTryAgain };

// A zombie refuses to be seized with EPERM, as a foreign tracee does.
Result<Refused> WhyNotSeized(pid_t pid, pid_t tid) {
  const auto text = ReadFileAt(AT_FDCWD, TaskFolder(pid, tid) + "/status");
  if (!text.ok()) return Refused::kEnded;
  ASSIGN_OR_RETURN(const TaskStatus task, ParseTaskStatus(*text));
  if (task.state == 'Z' || task.state == 'X') return Refused::kEnded;
  // Seized by its own number, it has executed a program since.
  if (task.tracer_pid == ::gettid()) return Refused::kIsOurs;
  if (task.tracer_pid != 0) {
    return FailedPrecondition("pid " + std::to_string(pid) + " is traced by pid " +
                              std::to_string(task.tracer_pid) +
                              " (a debugger or strace); end that first");
  }
  return Refused::kTryAgain;  // its number was that of a zombie until now
}

// True when the thread is in uninterruptible sleep.
bool Sleeps(const Freezer::Thread& thread) {
  const auto text = ReadFileAt(AT_FDCWD, TaskFolder(thread.pid, thread.tracee.tid()) + "/stat");
  const auto stat = text.ok() ? ParseTaskStat(*text) : text.status();
  return stat.ok() && stat->state == 'D';
}

}  // namespace

// Reaps threads that have ended while another one is seized for long.
class Freezer::Reaper {
 public:
  Reaper() : thread_([this](const std::stop_token& stop) { Run(stop); }) {}

  Result<Tracee> Seize(pid_t tid) {
    ++turn_;
    Result<Tracee> tracee = Tracee::Seize(tid, kOptions);
    ++turn_;
    if (!tracee.ok()) return tracee;
    const std::scoped_lock lock(mutex_);
    seized_.push_back(tid);
    return tracee;
  }

 private:
  void Run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    unsigned last = 0;
    while (!stop.stop_requested()) {
      (void)wake_.wait_for(lock, stop, kHang, [] { return false; });
      const unsigned turn = turn_;
      const bool seizing = turn % 2 == 1;
      if (seizing && turn == last) std::erase_if(seized_, Reap);
      last = turn;
    }
  }

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::vector<pid_t> seized_;
  std::atomic<unsigned> turn_ = 0;  // odd: somebody is seized just now
  std::jthread thread_;             // ends first
};

Freezer::Freezer(std::map<pid_t, TaskFiles>& files, steady_clock::time_point deadline,
                 const std::stop_token& stop)
    : files_(files), deadline_(deadline), stop_(stop), reaper_(std::make_unique<Reaper>()) {}

Freezer::~Freezer() = default;

Result<bool> Freezer::Seize(pid_t pid, const std::vector<pid_t>& tids) {
  bool found = false;
  for (const pid_t tid : tids) {
    if (threads_.contains(tid)) continue;
    ASSIGN_OR_RETURN(const bool seized, SeizeOne(pid, tid));
    found = found || seized;
  }
  return found;
}

Result<bool> Freezer::SeizeOne(pid_t pid, pid_t tid) {
  constexpr int kTries = 5;
  // What was looked at before is none of the kernel's, for whose work an interrupt would be the end.
  if (tid != pid && !files_.contains(tid) && IsKernelWorker(pid, tid)) return false;
  Result<Tracee> tracee = reaper_->Seize(tid);
  for (int i = 1; !tracee.ok(); ++i) {
    if (tracee.status().code() == StatusCode::kNotFound) return false;
    ASSIGN_OR_RETURN(const Refused why, WhyNotSeized(pid, tid));
    if (why == Refused::kEnded) return false;
    if (i == kTries) return Annotate(tracee.status(), "pid " + std::to_string(pid));
    tracee = why == Refused::kIsOurs ? Tracee::Adopt(tid) : reaper_->Seize(tid);
  }
  if (first_seized_ == TimePoint()) first_seized_ = steady_clock::now();
  Thread& thread = threads_[tid];
  thread.tracee = *std::move(tracee);
  thread.files = TaskFiles(pid, tid);
  thread.pid = pid;
  running_.push_back(&thread);
  const auto files = files_.find(tid);
  // A number may have gone from one process to another since.
  if (files != files_.end() && files->second.pid() == pid) thread.files = std::move(files->second);
  return true;
}

Status Freezer::InterruptAll() {
  Status worst;
  for (Thread* const thread : std::exchange(running_, {})) {
    if (first_stop_ == TimePoint()) first_stop_ = steady_clock::now();
    const Status status = thread->tracee.Interrupt();
    if (status.code() == StatusCode::kNotFound) {
      InterruptLeader(*thread);
    } else if (worst.ok()) {
      worst = status;
    }
  }
  return worst;
}

// It may have executed a program.
void Freezer::InterruptLeader(const Thread& thread) {
  const auto leader = threads_.find(thread.pid);
  if (leader != threads_.end()) (void)leader->second.tracee.Interrupt();  // it may have ended, too
}

Result<bool> Freezer::Visit(pid_t pid, const std::vector<pid_t>& tids) {
  const auto is_known = [this](pid_t tid) { return threads_.contains(tid); };
  const bool all_known = std::ranges::all_of(tids, is_known);
  const Result<bool> found = Seize(pid, tids);
  RETURN_IF_ERROR(InterruptAll());
  if (!found.ok()) (void)WaitAll();  // what runs cannot be detached from
  RETURN_IF_ERROR(found.status());
  // One that was made until now, and has executed a program, has ended those that stood still.
  const bool same_leader = !threads_.contains(pid) || !Reap(pid);
  return ((!all_known || !same_leader) && ReapEnded()) || *found;
}

std::vector<pid_t> Freezer::ChildrenOf(const std::vector<pid_t>& tids) const {
  struct OfOne {
    const TaskFiles& files;
    std::vector<pid_t> children = {};
  };
  std::vector<OfOne> all;
  for (const pid_t tid : tids) {
    const auto thread = threads_.find(tid);
    if (thread != threads_.end()) all.push_back({thread->second.files});  // else it has ended
  }
  (void)InHalves(std::span(all), [](OfOne& one) {
    one.children = one.files.Children();
    return OkStatus();
  });
  std::vector<pid_t> children;
  for (const OfOne& one : all) {
    children.insert(children.end(), one.children.begin(), one.children.end());
  }
  return children;
}

bool Freezer::ReapEnded() {
  bool any = false;
  for (auto& [tid, thread] : threads_) {
    if (thread.ended || !Reap(tid)) continue;
    thread.ended = true;
    any = true;
  }
  return any;
}

// Also reaps those for which this one may wait.
Result<Stop> Freezer::Await(const Thread& thread, TimePoint until) {
  while (true) {
    const TimePoint now = steady_clock::now();
    Result<Stop> stop = WaitForStop(thread.tracee.tid(), std::min(until, now + kHang));
    if (stop.status().code() != StatusCode::kDeadlineExceeded || now + kHang >= until) return stop;
    ReapEnded();
    if (thread.ended) return NotFound("it has ended");
  }
}

// Waits until `look`, and if the thread does not sleep uninterruptibly then, until `give_up`.
Status Freezer::Wait(Thread& thread, TimePoint look, TimePoint give_up) {
  while (true) {
    if (stop_.stop_requested()) return Cancelled("cancelled while freezing");
    Result<Stop> waited = Await(thread, look);
    if (waited.status().code() == StatusCode::kDeadlineExceeded && look < give_up &&
        !Sleeps(thread)) {
      look = give_up;
      continue;
    }
    // It had another's number, or has executed a program and is known by its process's.
    if (ErrnoOf(waited.status()) == ECHILD) return NotFound("it has ended");
    ASSIGN_OR_RETURN(const Stop stop, waited);
    if (first_stop_ == TimePoint()) first_stop_ = steady_clock::now();
    switch (stop.kind) {
      case Stop::Kind::kTrap:
        return OkStatus();
      case Stop::Kind::kGroup:
        thread.stop_signal = stop.signal;
        return OkStatus();
      case Stop::Kind::kExited:
        return NotFound("it has ended");
      default:
        // A signal came first: it is delivered, and the stop that we asked for follows. It may have held the
        // thread since that was seized.
        if (first_seized_ != TimePoint()) first_stop_ = first_seized_;
        RETURN_IF_ERROR(thread.tracee.Continue(stop.kind == Stop::Kind::kSignal ? stop.signal : 0));
        break;
    }
  }
}

Status Freezer::WaitAll() {
  for (auto& [tid, thread] : threads_) {
    if (thread.stopped || thread.ended) continue;
    const auto now = steady_clock::now();
    const Status status = Wait(thread, std::min(deadline_, now + kSleeperTimeout),
                               std::min(deadline_, now + kStopTimeout));
    thread.ended = status.code() == StatusCode::kNotFound;
    if (!thread.ended) RETURN_IF_ERROR(status);
    thread.stopped = true;
  }
  ForgetEnded();
  return OkStatus();
}

void Freezer::ForgetEnded() {
  for (auto entry = threads_.begin(); entry != threads_.end();) {
    Thread& thread = entry->second;
    if (thread.ended) thread.tracee.Forget();
    entry = thread.ended ? threads_.erase(entry) : std::next(entry);
  }
}

Status Freezer::AwaitSleepers() {
  std::erase_if(threads_, [](const auto& entry) { return entry.second.stopped; });  // detaches
  first_stop_ = first_seized_ = {};
  const auto give_up = std::min(deadline_, steady_clock::now() + kPatience);
  for (auto& [tid, thread] : threads_) {
    if (thread.ended) continue;
    const Status status = Wait(thread, give_up, give_up);
    if (status.code() == StatusCode::kCancelled) return status;
    thread.ended = status.code() == StatusCode::kNotFound;
    thread.stopped = status.ok();
  }
  ForgetEnded();
  return OkStatus();
}

}  // namespace stasis::engine
