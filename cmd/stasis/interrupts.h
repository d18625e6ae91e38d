// What happens when somebody wants this program to end while it works.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <atomic>
#include <mutex>
#include <stop_token>
#include <thread>

namespace stasis::cli {

/// While it lives, signals that would end the program request a stop instead, so that what is under
/// way can be taken back. To be made before other threads are, which inherit what is blocked here.
class Interrupts {
 public:
  Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;
  ~Interrupts();

  std::stop_token token() const { return stop_.get_token(); }

  /// The signal that came first; 0 for none.
  int caught() const { return caught_; }

  /// From now on signals are for the process `pid`, that of one that came already included.
  void PassOnTo(pid_t pid);

 private:
  void Wait();

  sigset_t signals_ = {};
  sigset_t before_ = {};
  std::stop_source stop_;
  std::mutex mutex_;
  pid_t passed_on_to_ = 0;  // by the mutex, with caught_: no signal gets lost between the two
  std::atomic<int> caught_ = 0;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

}  // namespace stasis::cli
