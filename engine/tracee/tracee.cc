#include "engine/tracee/tracee.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace stasis::engine {
namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;

// Stops come within tens of microseconds, on another processor often within ten; then we look less and less
// often. waitpid(2) has no timeout. Never sched_yield(2): on a busy machine it gives away a whole time
// slice, milliseconds, where a thread that sleeps is let in soon after it wakes.
constexpr int kBusyLooks = 40;
constexpr microseconds kShortestNap{5}, kLongestNap{500};

// Sleeps of microseconds: by default they are lengthened by 50.
void SleepExactly() {
  thread_local const bool kExact = ::prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) == 0;
  (void)kExact;  // without it we only wait longer
}

Stop Decode(int status) {
  Stop stop;
  stop.status = status;
  if (WIFEXITED(status) || WIFSIGNALED(status)) {
    stop.kind = Stop::Kind::kExited;
    return stop;
  }
  stop.signal = WSTOPSIG(status);
  stop.event = status >> 16;
  if (stop.event == PTRACE_EVENT_STOP) {
    // "If WSTOPSIG(status) is a stopping signal, the tracee is in group-stop", else the stop that
    // PTRACE_INTERRUPT asked for, with SIGTRAP.
    stop.kind = stop.signal == SIGTRAP ? Stop::Kind::kTrap : Stop::Kind::kGroup;
  } else if (stop.event != 0) {
    stop.kind = Stop::Kind::kEvent;
  } else if (stop.signal == (SIGTRAP | 0x80)) {  // PTRACE_O_TRACESYSGOOD
    stop.kind = Stop::Kind::kSyscall;
  } else {
    stop.kind = Stop::Kind::kSignal;
  }
  return stop;
}

Status Ptrace(__ptrace_request request, pid_t tid, std::uint64_t address, std::uint64_t data,
              const char* name) {
  if (::ptrace(request, tid, address, data) != 0) {
    return SyscallError(errno, std::string("ptrace ") + name + " tid " + std::to_string(tid));
  }
  return OkStatus();
}

using Transfer = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long,
                             unsigned long);

Status TransferAll(Transfer transfer, const char* name, pid_t pid, std::uint64_t address,
                   std::byte* bytes, std::size_t size) {
  std::size_t done = 0;
  while (done < size) {
    const iovec local = {bytes + done, size - done};
    const iovec remote = {reinterpret_cast<void*>(address + done), size - done};
    const ssize_t got = transfer(pid, &local, 1, &remote, 1, 0);
    if (got <= 0) {
      return SyscallError(got < 0 ? errno : EFAULT, std::string(name) + " pid " +
                                                        std::to_string(pid) + " at " +
                                                        std::to_string(address + done));
    }
    done += static_cast<std::size_t>(got);
  }
  return OkStatus();
}

// Each stop sends SIGCHLD to the tracer (do_notify_parent_cldstop() in kernel/signal.c), which wakes a thread
// of ours that waits for signals, to no end: 10 us a stop. Where nobody handles it, it need not come.
void StopWithoutSignals() {
  [[maybe_unused]] static const bool kOnce = [] {
    struct sigaction action = {};
    if (::sigaction(SIGCHLD, nullptr, &action) != 0 || action.sa_handler != SIG_DFL) return false;
    action.sa_flags |= SA_NOCLDSTOP;
    return ::sigaction(SIGCHLD, &action, nullptr) == 0;
  }();
}

}  // namespace

Result<Stop> WaitForStop(pid_t tid, steady_clock::time_point deadline) {
  microseconds nap = kShortestNap;
  for (int look = 0;; ++look) {
    int status = 0;
    const pid_t got = ::waitpid(tid, &status, __WALL | WNOHANG);
    if (got == tid) return Decode(status);
    if (got < 0 && errno != EINTR) {
      return SyscallError(errno, "waitpid tid " + std::to_string(tid));
    }
    if (look < kBusyLooks) continue;
    if (look == kBusyLooks) SleepExactly();
    if (steady_clock::now() >= deadline) {
      return DeadlineExceeded("tid " + std::to_string(tid) + " does not stop");
    }
    std::this_thread::sleep_for(nap);
    nap = std::min(nap * 2, kLongestNap);
  }
}

Result<Tracee> Tracee::Seize(pid_t tid, unsigned options) {
  StopWithoutSignals();
  RETURN_IF_ERROR(Ptrace(PTRACE_SEIZE, tid, 0, options, "SEIZE"));
  return Tracee(tid);
}

Tracee::Tracee(Tracee&& other) noexcept : tid_(std::exchange(other.tid_, 0)) {}

Tracee& Tracee::operator=(Tracee&& other) noexcept {
  if (this != &other) {
    if (tid_ != 0) (void)Detach();  // replaced: nobody is left to hear of an error
    tid_ = std::exchange(other.tid_, 0);
  }
  return *this;
}

Tracee::~Tracee() {
  if (tid_ != 0) (void)Detach();  // a destructor cannot report; Detach() is called on the good path
}

Status Tracee::Interrupt() { return Ptrace(PTRACE_INTERRUPT, tid_, 0, 0, "INTERRUPT"); }

Status Tracee::Continue(int signal) {
  return Ptrace(PTRACE_CONT, tid_, 0, static_cast<std::uint64_t>(signal), "CONT");
}

Status Tracee::ContinueToSyscall() { return Ptrace(PTRACE_SYSCALL, tid_, 0, 0, "SYSCALL"); }

Result<unsigned long> Tracee::EventMessage() {
  unsigned long message = 0;
  RETURN_IF_ERROR(Ptrace(PTRACE_GETEVENTMSG, tid_, 0, reinterpret_cast<std::uint64_t>(&message),
                         "GETEVENTMSG"));
  return message;
}

Result<std::uint64_t> Tracee::SignalMask() {
  std::uint64_t mask = 0;
  RETURN_IF_ERROR(Ptrace(static_cast<__ptrace_request>(PTRACE_GETSIGMASK), tid_, sizeof(mask),
                         reinterpret_cast<std::uint64_t>(&mask), "GETSIGMASK"));
  return mask;
}

Status Tracee::SetSignalMask(std::uint64_t mask) {
  return Ptrace(static_cast<__ptrace_request>(PTRACE_SETSIGMASK), tid_, sizeof(mask),
                reinterpret_cast<std::uint64_t>(&mask), "SETSIGMASK");
}

Status Tracee::Detach(int signal) {
  const pid_t tid = std::exchange(tid_, 0);
  return Ptrace(PTRACE_DETACH, tid, 0, static_cast<std::uint64_t>(signal), "DETACH");
}

// Any stop takes back the one that PTRACE_INTERRUPT asked for (ptrace_stop() in kernel/signal.c): asked for while the
// tracee was on its way out of execve(2), which it stops for, it would never come.
Status WaitUntilStopped(Tracee& tracee, steady_clock::time_point deadline) {
  while (true) {
    ASSIGN_OR_RETURN(const Stop stop, WaitForStop(tracee.tid(), deadline));
    switch (stop.kind) {
      case Stop::Kind::kTrap:
      case Stop::Kind::kGroup:
        return OkStatus();
      case Stop::Kind::kExited:
        return NotFound("tid " + std::to_string(tracee.tid()) + " has ended");
      default:
        RETURN_IF_ERROR(tracee.Interrupt());
        RETURN_IF_ERROR(tracee.Continue(stop.kind == Stop::Kind::kSignal ? stop.signal : 0));
    }
  }
}

Status ReadMemory(pid_t pid, std::uint64_t address, std::span<std::byte> bytes) {
  return TransferAll(::process_vm_readv, "process_vm_readv", pid, address, bytes.data(),
                     bytes.size());
}

Status WriteMemory(pid_t pid, std::uint64_t address, std::span<const std::byte> bytes) {
  // process_vm_writev only reads from the local side.
  return TransferAll(::process_vm_writev, "process_vm_writev", pid, address,
                     const_cast<std::byte*>(bytes.data()), bytes.size());
}

namespace {

template <typename Piece>
Status TransferPieces(Transfer transfer, const char* name, pid_t pid,
                      std::span<const Piece> pieces) {
  std::vector<iovec> local, remote;
  std::size_t size = 0;
  for (const Piece& piece : pieces) {
    if (piece.bytes.empty()) continue;
    auto* const bytes = const_cast<std::byte*>(piece.bytes.data());  // a write only reads them
    local.push_back({bytes, piece.bytes.size()});
    remote.push_back({reinterpret_cast<void*>(piece.address), piece.bytes.size()});
    size += piece.bytes.size();
  }
  if (size == 0) return OkStatus();
  const ssize_t got = transfer(pid, local.data(), local.size(), remote.data(), remote.size(), 0);
  if (got >= 0 && static_cast<std::size_t>(got) == size) return OkStatus();
  for (const Piece& piece : pieces) {  // which says where it fails
    RETURN_IF_ERROR(TransferAll(transfer, name, pid, piece.address,
                                const_cast<std::byte*>(piece.bytes.data()), piece.bytes.size()));
  }
  return OkStatus();
}

}  // namespace

Status ReadMemory(pid_t pid, std::span<const MemoryRoom> pieces) {
  return TransferPieces(::process_vm_readv, "process_vm_readv", pid, pieces);
}

Status WriteMemory(pid_t pid, std::span<const MemoryPiece> pieces) {
  return TransferPieces(::process_vm_writev, "process_vm_writev", pid, pieces);
}

Status ReadMemoryForced(int mem_fd, std::uint64_t address, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(mem_fd, bytes.data(), bytes.size(), static_cast<off_t>(address));
    if (got <= 0) {
      return SyscallError(got < 0 ? errno : EFAULT,
                          "read /proc/PID/mem at " + std::to_string(address));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(got));
    address += static_cast<std::uint64_t>(got);
  }
  return OkStatus();
}

Status WriteMemoryForced(int mem_fd, std::uint64_t address, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(mem_fd, bytes.data(), bytes.size(), static_cast<off_t>(address));
    if (put <= 0) {
      return SyscallError(put < 0 ? errno : EFAULT,
                          "write /proc/PID/mem at " + std::to_string(address));
    }
    bytes = bytes.subspan(static_cast<std::size_t>(put));
    address += static_cast<std::uint64_t>(put);
  }
  return OkStatus();
}

}  // namespace stasis::engine
