// Source  ptrace(2), vdso(7), rt_sigreturn(2); tested on 6.18
// Rule    A call takes two syscall-stops (about 10 us). Between them the tracer may die: the thread then
//         finishes the call and goes on at the next instruction, which in HomewardCode() is rt_sigreturn.
// Rule    A tracee stops for a signal that it ignores, too (sig_ignored() in kernel/signal.c). Sent by the last
//         of several calls it is their end; without a tracer it is dropped, and the thread goes home.
// Rule    Signals are blocked for the thread meanwhile, so that no handler of the program runs on our
//         registers. PTRACE_GETSIGMASK before PTRACE_SETSIGMASK: the kernel gives the mask that a
//         sleeping sigsuspend(2) or ppoll(2) will put back. SIGSTOP cannot be blocked: one that comes, or was
//         pending (a stopped process got a second one), is sent again when the thread is given back.
#include "engine/tracee/remote_syscalls.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/tracee/foothold.h"

namespace stasis::engine {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

// No call that we make sleeps for long; a network file system may (open).
constexpr seconds kCallTimeout{30};
constexpr std::uint64_t kAllSignals = ~std::uint64_t{0};
// Longest error number, include/linux/err.h.
constexpr std::int64_t kMaxErrno = 4095;

// Waits for the stop at a system call's boundary that ContinueToSyscall() leads to.
Status AwaitSyscallStop(Tracee& tracee, const std::function<Status(const Stop&)>& on_event,
                        bool& stop_pending) {
  while (true) {
    ASSIGN_OR_RETURN(const Stop stop,
                     WaitForStop(tracee.tid(), steady_clock::now() + kCallTimeout));
    switch (stop.kind) {
      case Stop::Kind::kSyscall:
        return OkStatus();
      case Stop::Kind::kExited:
        tracee.Forget();
        return NotFound("the thread ended (wait status " + std::to_string(stop.status) + ")");
      case Stop::Kind::kEvent:
        if (on_event) RETURN_IF_ERROR(on_event(stop));
        break;
      case Stop::Kind::kSignal:
        if (stop.signal == SIGSTOP) {
          stop_pending = true;
          break;
        }
        // All signals that can be blocked are; what comes is forced by a fault of ours.
        return Internal("tid " + std::to_string(tracee.tid()) + " got signal " +
                        std::to_string(stop.signal) + " in our code");
      case Stop::Kind::kGroup:
      case Stop::Kind::kTrap:
        break;  // an interrupt that was still on its way
    }
    RETURN_IF_ERROR(tracee.ContinueToSyscall());
  }
}

}  // namespace

namespace {

Result<RemoteArea> MapArea(RemoteSyscalls& remote, std::optional<std::uint64_t> address) {
  const std::uint64_t fixed = address ? MAP_FIXED_NOREPLACE : 0;
  constexpr std::uint64_t kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;
  ASSIGN_OR_RETURN(const std::uint64_t at,
                   remote.Call("mmap our area", SYS_mmap, address.value_or(0), RemoteArea::kBytes,
                               PROT_READ | PROT_EXEC, kAnonymous | fixed, -1, 0));
  const RemoteArea area = {.address = at};
  const pid_t tid = remote.tracee().tid();
  const auto fill = [&]() -> Status {
    // Code is never writable in the tracee: under PR_SET_MDWE (prctl(2), Linux 6.3) it could not be
    // executable then. It is written through /proc/PID/mem.
    RETURN_IF_ERROR(remote
                        .Call("mmap our area's data", SYS_mmap, area.place().frame,
                              RemoteArea::kBytes - RemoteArea::kPage, PROT_READ | PROT_WRITE,
                              kAnonymous | MAP_FIXED, -1, 0)
                        .status());
    ASSIGN_OR_RETURN(const UniqueFd mem,
                     OpenAt(AT_FDCWD, "/proc/" + std::to_string(tid) + "/mem", O_RDWR));
    return WriteMemoryForced(mem.get(), area.address, arch::HomewardCode());
  };
  const Status status = fill();
  if (status.ok()) return area;
  (void)remote.Call("munmap", SYS_munmap, area.address, RemoteArea::kBytes);  // reporting worse
  return status;
}

}  // namespace

Result<RemoteArea> MakeArea(Tracee& tracee, std::optional<std::uint64_t> address) {
  ASSIGN_OR_RETURN(Foothold foothold, Foothold::Take(tracee));
  ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(tracee, foothold.place()));
  Result<RemoteArea> area = MapArea(remote, address);
  RETURN_IF_ERROR(remote.Finish());
  RETURN_IF_ERROR(foothold.Leave());
  return area;
}

Status RemoveArea(Tracee& tracee, const RemoteArea& area) {
  ASSIGN_OR_RETURN(Foothold foothold, Foothold::Take(tracee, area.address));
  ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(tracee, foothold.place()));
  const Status status =
      remote.Call("munmap our area", SYS_munmap, area.address, RemoteArea::kBytes).status();
  RETURN_IF_ERROR(remote.Finish());
  RETURN_IF_ERROR(foothold.Leave());
  return status;
}

CallPlace RemoteArea::place() const {
  const std::uint64_t frame = address + kPage;
  return {address, frame, kFrameBytes, frame + kFrameBytes, kArgumentBytes};
}

CallPlace RemoteArea::slot(unsigned index) const {
  const std::uint64_t frame = address + kPage + index * kSlotBytes;
  return {address, frame, kSlotFrameBytes, frame + kSlotFrameBytes, kSlotArgumentBytes};
}

Result<RemoteSyscalls> RemoteSyscalls::Begin(Tracee& tracee, const CallPlace& place) {
  ASSIGN_OR_RETURN(const arch::Registers registers, arch::Read(tracee.tid()));
  ASSIGN_OR_RETURN(const std::uint64_t mask, tracee.SignalMask());
  return Begin(tracee, place, registers, mask);
}

Result<RemoteSyscalls> RemoteSyscalls::Begin(Tracee& tracee, const CallPlace& place,
                                             const arch::Registers& registers, std::uint64_t mask) {
  RemoteSyscalls remote(tracee, place);
  remote.frame_ = arch::SignalFrame(registers, mask, place.frame);
  if (remote.frame_.size() > place.frame_bytes) {
    return Unimplemented("this processor's registers need a frame of " +
                         std::to_string(remote.frame_.size()) + " bytes");
  }
  remote.saved_ = registers.general;
  remote.saved_mask_ = mask;
  return remote;
}

// The way home comes before the signals are blocked: were the tracer to die in between, the thread would go on
// with all of them blocked.
Status RemoteSyscalls::Enter(const arch::GeneralRegisters& registers, std::uint64_t mask) {
  if (!frame_.empty()) RETURN_IF_ERROR(WriteMemory(tracee_.tid(), place_.frame, frame_));
  frame_.clear();
  RETURN_IF_ERROR(arch::WriteGeneral(tracee_.tid(), registers));
  entered_ = true;
  if (mask_ == mask) return OkStatus();
  RETURN_IF_ERROR(tracee_.SetSignalMask(mask));
  mask_ = mask;
  return OkStatus();
}

RemoteSyscalls::RemoteSyscalls(RemoteSyscalls&& other) noexcept
    : on_event(std::move(other.on_event)),
      tracee_(std::move(other.tracee_)),
      place_(other.place_),
      saved_(other.saved_),
      saved_mask_(other.saved_mask_),
      frame_(std::move(other.frame_)),
      calls_(std::move(other.calls_)),
      calls_at_(other.calls_at_),
      calls_signal_(other.calls_signal_),
      entered_(other.entered_),
      mask_(other.mask_),
      used_(other.used_),
      stop_pending_(other.stop_pending_),
      in_signal_stop_(other.in_signal_stop_) {}

RemoteSyscalls& RemoteSyscalls::operator=(RemoteSyscalls&& other) noexcept {
  if (this == &other) return *this;
  (void)Finish();  // as a destructor: nobody is left to hear of an error
  on_event = std::move(other.on_event);
  tracee_ = std::move(other.tracee_);
  place_ = other.place_;
  saved_ = other.saved_;
  saved_mask_ = other.saved_mask_;
  frame_ = std::move(other.frame_);
  calls_ = std::move(other.calls_);
  calls_at_ = other.calls_at_;
  calls_signal_ = other.calls_signal_;
  entered_ = other.entered_;
  mask_ = other.mask_;
  used_ = other.used_;
  stop_pending_ = other.stop_pending_;
  in_signal_stop_ = other.in_signal_stop_;
  return *this;
}

RemoteSyscalls::~RemoteSyscalls() {
  (void)Finish();  // an early return: already reporting worse
}

arch::GeneralRegisters RemoteSyscalls::Calling(
    long number, const std::array<std::uint64_t, 6>& arguments) const {
  return arch::ForSyscall(saved_, place_.code, place_.frame + arch::FrameStackOffset(), number,
                          arguments);
}

Result<std::uint64_t> RemoteSyscalls::Run(std::string_view what, long number,
                                          std::array<std::uint64_t, 6> arguments) {
  RETURN_IF_ERROR(Start(number, arguments));
  RETURN_IF_ERROR(Annotate(AwaitSyscallStop(tracee_, on_event, stop_pending_), what));
  RETURN_IF_ERROR(tracee_.ContinueToSyscall());
  RETURN_IF_ERROR(Annotate(AwaitSyscallStop(tracee_, on_event, stop_pending_), what));
  ASSIGN_OR_RETURN(const arch::GeneralRegisters after, arch::ReadGeneral(tracee_.tid()));
  const std::int64_t result = arch::SyscallResult(after);
  if (result < 0 && result >= -kMaxErrno) {
    return SyscallError(static_cast<int>(-result), what);
  }
  return static_cast<std::uint64_t>(result);
}

Status RemoteSyscalls::Start(long number, const std::array<std::uint64_t, 6>& arguments) {
  // The registers stay at the homeward code from one call to the next, so that every instruction at
  // which the thread could be left alone leads it home.
  RETURN_IF_ERROR(Enter(Calling(number, arguments), kAllSignals));
  in_signal_stop_ = false;
  return tracee_.ContinueToSyscall();
}

void RemoteSyscalls::PrepareAll(std::uint64_t at, std::vector<arch::CallInside> calls,
                                std::pair<pid_t, pid_t> ids, int signal,
                                std::vector<MemoryPiece>& pieces) {
  const auto number = [](int value) { return static_cast<std::uint64_t>(value); };
  calls_ = std::move(calls);
  calls_.push_back(
      {.number = SYS_tgkill, .arguments = {number(ids.first), number(ids.second), number(signal)}});
  calls_at_ = at;
  calls_signal_ = signal;
  pieces.push_back({place_.frame, frame_});
  pieces.push_back({at, std::as_bytes(std::span(calls_))});
}

Status RemoteSyscalls::StartAll() {
  frame_.clear();  // it is there
  const std::size_t count = std::exchange(calls_, {}).size();
  RETURN_IF_ERROR(Enter(arch::ForCalls(saved_, place_.code, place_.frame + arch::FrameStackOffset(),
                                       calls_at_, count),
                        kAllSignals & ~(std::uint64_t{1} << (calls_signal_ - 1))));
  return tracee_.Continue();
}

Status RemoteSyscalls::EndAll(int signal) {
  while (true) {
    ASSIGN_OR_RETURN(const Stop stop,
                     WaitForStop(tracee_.tid(), steady_clock::now() + kCallTimeout));
    if (stop.kind == Stop::Kind::kExited) {
      tracee_.Forget();
      return NotFound("the thread ended (wait status " + std::to_string(stop.status) + ")");
    }
    if (stop.kind == Stop::Kind::kSignal && stop.signal == signal) {
      in_signal_stop_ = true;
      return OkStatus();
    }
    if (stop.kind == Stop::Kind::kSignal) {
      if (stop.signal != SIGSTOP) {
        return Internal("tid " + std::to_string(tracee_.tid()) + " got signal " +
                        std::to_string(stop.signal) + " in our code");
      }
      stop_pending_ = true;
    }
    if (stop.kind == Stop::Kind::kEvent && on_event) RETURN_IF_ERROR(on_event(stop));
    RETURN_IF_ERROR(tracee_.Continue());
  }
}

Result<std::int64_t> RemoteSyscalls::CallInterrupted(
    long number, const std::array<std::uint64_t, 6>& arguments) {
  RETURN_IF_ERROR(Start(number, arguments));
  RETURN_IF_ERROR(AwaitSyscallStop(tracee_, on_event, stop_pending_));
  // Before it enters the call: there it finds that it is to stop, as if by a signal.
  RETURN_IF_ERROR(tracee_.Interrupt());
  RETURN_IF_ERROR(tracee_.ContinueToSyscall());
  RETURN_IF_ERROR(AwaitSyscallStop(tracee_, on_event, stop_pending_));
  ASSIGN_OR_RETURN(const arch::GeneralRegisters after, arch::ReadGeneral(tracee_.tid()));
  return arch::SyscallResult(after);
}

Result<std::uint64_t> RemoteSyscalls::Reserve(std::size_t size) {
  const std::uint64_t at = (used_ + 15) & ~std::uint64_t{15};
  if (at + size > place_.argument_bytes) {
    return ResourceExhausted("arguments of a remote system call: no room for " +
                             std::to_string(size) + " bytes");
  }
  used_ = at + size;
  return place_.arguments + at;
}

Result<std::uint64_t> RemoteSyscalls::Put(std::span<const std::byte> bytes) {
  ASSIGN_OR_RETURN(const std::uint64_t address, Reserve(bytes.size()));
  RETURN_IF_ERROR(WriteMemory(tracee_.tid(), address, bytes));
  return address;
}

Result<std::uint64_t> RemoteSyscalls::Put(std::string_view text) {
  const std::string terminated(text);
  return Put(std::as_bytes(std::span(terminated.c_str(), terminated.size() + 1)));
}

Status RemoteSyscalls::ReadBack(std::uint64_t address, std::span<std::byte> bytes) {
  return ReadMemory(tracee_.tid(), address, bytes);
}

Status RemoteSyscalls::Finish() {
  if (tracee_.tid() == 0) return OkStatus();
  Tracee tracee = std::move(tracee_);
  const absl::Cleanup forget = [&tracee] { tracee.Forget(); };
  if (!entered_) return OkStatus();
  // The mask first, as long as the registers lead home whatever becomes of us.
  RETURN_IF_ERROR(tracee.SetSignalMask(saved_mask_));
  // The extended ones are as they were: neither our code nor a system call changes them.
  RETURN_IF_ERROR(arch::WriteGeneral(tracee.tid(), saved_));
  if (stop_pending_ && ::syscall(SYS_tkill, tracee.tid(), SIGSTOP) != 0) {
    return SyscallError(errno, "tkill SIGSTOP");
  }
  // The last stop was a syscall-stop: without signal work the kernel would let a result like -512 through
  // to the program. An interrupt makes it look, and restart the call. From a signal-delivery-stop it goes on
  // there by itself. arch/x86/kernel/signal.c, arch_do_signal_or_restart()
  return in_signal_stop_ ? OkStatus() : tracee.Interrupt();
}

}  // namespace stasis::engine
