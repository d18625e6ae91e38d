// One thread under ptrace(2), and what it does next, decoded once.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "engine/base/status.h"

namespace stasis::engine {

/// Why a tracee stopped or ended, ptrace(2) "Stopped states".
struct Stop {
  enum class Kind {
    kSignal,   ///< signal-delivery-stop: `signal` is lost unless it is injected again
    kGroup,    ///< group-stop by `signal`
    kTrap,     ///< PTRACE_EVENT_STOP after an interrupt, or of a new child
    kSyscall,  ///< syscall-enter- or syscall-exit-stop
    kEvent,    ///< PTRACE_EVENT_* number `event`
    kExited,   ///< ended; `status` is the wait status
  };
  Kind kind = Kind::kTrap;
  int signal = 0;
  int event = 0;
  int status = 0;
};

/// Waits until `tid`, traced by this thread, stops or ends. DeadlineExceeded when it does neither until
/// `deadline`: a task in uninterruptible sleep stops only when it wakes.
Result<Stop> WaitForStop(pid_t tid, std::chrono::steady_clock::time_point deadline);

/// One seized thread. Its destructor detaches: the thread then runs with the registers that it has.
class Tracee {
 public:
  /// PTRACE_SEIZE with `options` (PTRACE_O_*). NotFound: it is gone. PermissionDenied: another tracer,
  /// or no right. The thread runs on; see Interrupt().
  static Result<Tracee> Seize(pid_t tid, unsigned options);
  /// Takes over a thread that the kernel seized for us (PTRACE_O_TRACECLONE and the like).
  static Tracee Adopt(pid_t tid) { return Tracee(tid); }

  Tracee() = default;
  Tracee(Tracee&& other) noexcept;
  Tracee& operator=(Tracee&& other) noexcept;
  Tracee(const Tracee&) = delete;
  Tracee& operator=(const Tracee&) = delete;
  ~Tracee();

  pid_t tid() const { return tid_; }

  /// Asks for a stop without a signal; WaitForStop sees it.
  Status Interrupt();
  /// Lets it run (PTRACE_CONT), or run to its next system call boundary (PTRACE_SYSCALL).
  Status Continue(int signal = 0);
  Status ContinueToSyscall();
  /// PTRACE_GETEVENTMSG: the new task's id after a clone event.
  Result<unsigned long> EventMessage();

  Result<std::uint64_t> SignalMask();
  Status SetSignalMask(std::uint64_t mask);

  /// Lets it go. It must be in a stop; a group-stopped thread stays stopped.
  Status Detach(int signal = 0);
  /// Forgets the thread without a call: it has ended.
  void Forget() { tid_ = 0; }

 private:
  explicit Tracee(pid_t tid) : tid_(tid) {}
  pid_t tid_ = 0;
};

/// Waits for the stop that Tracee::Interrupt() asked for, or that a new tracee begins with; what else stops it first
/// goes on. NotFound: it has ended.
Status WaitUntilStopped(Tracee& tracee, std::chrono::steady_clock::time_point deadline);

/// Copies between our memory and that of process `pid`, all or nothing. NotFound: it is gone.
/// `Read` and `Write` honour the area's protection (process_vm_readv(2)).
Status ReadMemory(pid_t pid, std::uint64_t address, std::span<std::byte> bytes);
Status WriteMemory(pid_t pid, std::uint64_t address, std::span<const std::byte> bytes);
struct MemoryPiece {
  std::uint64_t address = 0;
  std::span<const std::byte> bytes = {};
};
struct MemoryRoom {
  std::uint64_t address = 0;
  std::span<std::byte> bytes = {};
};
/// The same for several pieces in their order, at most 1024 (IOV_MAX), by one system call; those without bytes
/// count for nothing.
Status ReadMemory(pid_t pid, std::span<const MemoryRoom> pieces);
Status WriteMemory(pid_t pid, std::span<const MemoryPiece> pieces);
/// Through /proc/PID/mem, which a tracer may read and write whatever the protection says
/// (FOLL_FORCE; proc_pid_mem(5)).
Status ReadMemoryForced(int mem_fd, std::uint64_t address, std::span<std::byte> bytes);
Status WriteMemoryForced(int mem_fd, std::uint64_t address, std::span<const std::byte> bytes);

}  // namespace stasis::engine
