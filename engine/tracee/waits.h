// Threads that wait in a system call, which a stop must not end.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/base/status.h"

namespace stasis::engine {

/// A wait for some time from now on, which the kernel makes a date of its own once it is interrupted.
struct TimedWait {
  arch::SystemCall call;
  /// The argument with the time: milliseconds, or the address of a timespec.
  std::size_t limit = 0;
  bool in_milliseconds = false;
  /// The argument with the address where the kernel has noted what was left at the interrupt; 0: nowhere.
  std::size_t rest = 0;
  /// The time is that of a processor, which passes only while somebody runs.
  bool of_processor = false;
};

/// Nothing for a call without such a time: it goes on alike when it is issued again.
std::optional<TimedWait> TimedWaitOf(const arch::SystemCall& call);

/// True when a call ended with EINTR for no other reason than that its thread was stopped, and has no
/// time limit: the kernel restarts all others by itself, or their time would begin anew.
/// Source: signal(7), "Interruption of system calls and library functions by stop signals".
bool EndedByStop(const arch::SystemCall& call);

/// Waits that were stopped before, for a tree that is frozen several times in one dump.
class EarlierStops {
 public:
  /// Of `tid`, stopped in a wait in which it `slept` since it was last restarted: how long it slept in it in
  /// all, as far as its earlier stops are known.
  std::chrono::nanoseconds Slept(pid_t tid, const arch::SystemCall& call, bool restarted,
                                 std::uint64_t voluntary_switches, std::chrono::nanoseconds slept);

  /// `tid`, which is still stopped, has made calls for us since, and switched so often by now.
  void Recount(pid_t tid, std::uint64_t voluntary_switches);

 private:
  struct Stop {
    arch::SystemCall call;
    std::uint64_t voluntary_switches;
    std::chrono::nanoseconds slept;
  };
  std::map<pid_t, Stop> last_;
};

/// What the threads of a tree did before it was frozen. A hint: what does not fit to what they are found
/// doing is of no use, and nothing is lost but a time.
class WaitsBeforeFreeze {
 public:
  /// Looks at each of `threads`, process and thread, once: some 20 us; at one that waits for some time, 100 us.
  static WaitsBeforeFreeze Look(const std::vector<std::pair<pid_t, pid_t>>& threads);

  struct Wait {
    arch::SystemCall call;   ///< The one that waits, not restart_syscall(2).
    bool restarted = false;  ///< ... though that it was.
    /// How long it slept, at least; unset where no clock tells.
    std::optional<std::chrono::nanoseconds> slept;
    std::uint64_t voluntary_switches = 0;
  };
  /// What `tid`, which stopped in `call` and has switched so often by now, did if it has done nothing
  /// else since.
  std::optional<Wait> Find(pid_t tid, const arch::SystemCall& call,
                           std::uint64_t voluntary_switches) const;

 private:
  std::map<pid_t, Wait> waits_;
};

}  // namespace stasis::engine
