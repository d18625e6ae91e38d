// Stops threads, one attempt after the other. For FrozenTree.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <memory>
#include <stop_token>
#include <vector>

#include "engine/base/status.h"
#include "engine/tracee/task_files.h"
#include "engine/tracee/tracee.h"

namespace stasis::engine {

/// Seizes and interrupts threads, and waits for them; by the thread that made it. What it still has when it ends is
/// detached from, a thread that does not stand still once the calling thread has ended.
class Freezer {
 public:
  struct Thread {
    Tracee tracee;
    TaskFiles files;
    pid_t pid = 0;
    bool stopped = false, ended = false;
    int stop_signal = 0;
  };

  /// `files`, by thread, are taken over for those that are seized. Errors of what follows: DeadlineExceeded, a
  /// thread does not stop; Cancelled; what WhyNotSeized says.
  Freezer(std::map<pid_t, TaskFiles>& files, std::chrono::steady_clock::time_point deadline,
          const std::stop_token& stop);
  ~Freezer();

  /// Seizes the threads `tids` of a process, which run on. True when there is a new one among them.
  Result<bool> Seize(pid_t pid, const std::vector<pid_t>& tids);
  /// Asks those for a stop that were seized.
  Status InterruptAll();
  /// Both at once, of all threads that the process has. True also when one that was known has ended.
  Result<bool> Visit(pid_t pid, const std::vector<pid_t>& tids);

  /// Waits for all threads that were interrupted and not yet seen to stand still.
  Status WaitAll();
  /// Lets those run that stand still, and waits for those that do not, which then do. They are kept for the next
  /// attempt.
  Status AwaitSleepers();

  /// Of threads that were visited.
  std::vector<pid_t> ChildrenOf(const std::vector<pid_t>& tids) const;
  std::map<pid_t, Thread>& threads() { return threads_; }
  std::chrono::steady_clock::time_point first_stop() const { return first_stop_; }

 private:
  using TimePoint = std::chrono::steady_clock::time_point;
  class Reaper;

  Result<bool> SeizeOne(pid_t pid, pid_t tid);
  void InterruptLeader(const Thread& thread);
  bool ReapEnded();
  void ForgetEnded();
  Result<Stop> Await(const Thread& thread, TimePoint until);
  Status Wait(Thread& thread, TimePoint look, TimePoint give_up);

  std::map<pid_t, TaskFiles>& files_;
  const TimePoint deadline_;
  const std::stop_token& stop_;
  std::map<pid_t, Thread> threads_;
  std::vector<Thread*> running_;  // those that were seized, but not interrupted
  TimePoint first_seized_, first_stop_;
  std::unique_ptr<Reaper> reaper_;
};

}  // namespace stasis::engine
