// System calls made by a stopped thread on our behalf: the one way in which anything is done inside a
// process, at dump and at restore.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/tracee/call_place.h"
#include "engine/tracee/tracee.h"

namespace stasis::engine {

/// A little memory of ours in a process: one page of code, then room for frames and arguments.
struct RemoteArea {
  std::uint64_t address = 0;

  static constexpr std::uint64_t kPage = 4096;
  static constexpr std::uint64_t kFrameBytes = 64 << 10;
  static constexpr std::uint64_t kArgumentBytes = 128 << 10;
  static constexpr std::uint64_t kBytes = kPage + kFrameBytes + kArgumentBytes;
  static constexpr std::uint64_t kSlotFrameBytes = 15 << 10;
  static constexpr std::uint64_t kSlotArgumentBytes = 1 << 10;
  static constexpr std::uint64_t kSlotBytes = kSlotFrameBytes + kSlotArgumentBytes;
  static constexpr unsigned kSlots = (kBytes - kPage) / kSlotBytes;

  CallPlace place() const;
  /// One of kSlots parts, so that as many threads make small calls at the same time.
  CallPlace slot(unsigned index) const;
};

/// Runs system calls in one thread that is in a ptrace stop. While it lives, the thread's registers are
/// ours; Finish() puts back what they were, and so does the destructor. When the tracer dies in between,
/// the thread runs through the signal frame back to where it was.
class RemoteSyscalls {
 public:
  /// Takes `tracee` over, to make calls at `place` (see MakeArea and Foothold). It stays as it is until the first.
  static Result<RemoteSyscalls> Begin(Tracee& tracee, const CallPlace& place);
  /// The same for a thread whose `registers` and signal `mask` are known to be these.
  static Result<RemoteSyscalls> Begin(Tracee& tracee, const CallPlace& place,
                                      const arch::Registers& registers, std::uint64_t mask);

  RemoteSyscalls(RemoteSyscalls&& other) noexcept;
  RemoteSyscalls& operator=(RemoteSyscalls&& other) noexcept;
  ~RemoteSyscalls();

  /// The result of system call `number`, or its error as SyscallError "`what`".
  template <typename... Arguments>
  Result<std::uint64_t> Call(std::string_view what, long number, Arguments... arguments) {
    return Run(what, number, {static_cast<std::uint64_t>(arguments)...});
  }

  /// Several calls in one run, with one stop for all of them: adds to `pieces` what is to be written to the
  /// process, from memory of this object, before StartAll(). They lie at `at`, where there is room for one more,
  /// with their results once they are made, each of which has to be kNotMade now. `ids` are the process and the
  /// thread as they see themselves; `signal` tells the end. On a thread that outlives its tracer it must have no
  /// effect: neither blocked nor caught, and ignored by default. Not for a thread in group-stop, nor where
  /// seccomp could end it once its tracer is gone.
  void PrepareAll(std::uint64_t at, std::vector<arch::CallInside> calls,
                  std::pair<pid_t, pid_t> ids, int signal, std::vector<MemoryPiece>& pieces);
  Status StartAll();
  /// Waits for `signal`, which may be somebody else's: then a call is kNotMade yet, and GoOnWithAll() is next.
  Status EndAll(int signal);
  Status GoOnWithAll() { return tracee_.Continue(); }

  /// The raw result of a call that is interrupted before it can wait: the kernel keeps its notes on how to
  /// go on with it, while further calls run, until the thread returns from a signal handler.
  Result<std::int64_t> CallInterrupted(long number, const std::array<std::uint64_t, 6>& arguments);

  /// Copies `bytes` to the thread's argument room and gives the address there; 16-byte aligned.
  /// All of it is given back by ResetArguments(). ResourceExhausted when the room is full.
  Result<std::uint64_t> Put(std::span<const std::byte> bytes);
  Result<std::uint64_t> Put(std::string_view text);  ///< With a terminating NUL.
  template <typename T>
  Result<std::uint64_t> PutValue(const T& value) {
    return Put(std::as_bytes(std::span(&value, 1)));
  }
  /// Room for `size` bytes that a call will fill.
  Result<std::uint64_t> Reserve(std::size_t size);
  std::size_t room() const { return place_.argument_bytes - used_; }
  void ResetArguments() { used_ = 0; }

  Status ReadBack(std::uint64_t address, std::span<std::byte> bytes);
  const CallPlace& place() const { return place_; }
  template <typename T>
  Result<T> ReadValue(std::uint64_t address) {
    T value = {};
    RETURN_IF_ERROR(ReadBack(address, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

  /// Called for PTRACE_EVENT_* stops that a call runs into (clone, fork, exec).
  std::function<Status(const Stop&)> on_event;

  Tracee& tracee() { return tracee_; }

  /// Puts registers and signal mask back; the thread stays stopped.
  Status Finish();
  /// The thread's state is not ours to put back any more (it has executed a program, or ends).
  void Abandon() { tracee_.Forget(); }

 private:
  RemoteSyscalls(Tracee& tracee, const CallPlace& place)
      : tracee_(Tracee::Adopt(tracee.tid())), place_(place) {}
  arch::GeneralRegisters Calling(long number, const std::array<std::uint64_t, 6>& arguments) const;
  Status Enter(const arch::GeneralRegisters& registers, std::uint64_t mask);
  Status Start(long number, const std::array<std::uint64_t, 6>& arguments);
  Result<std::uint64_t> Run(std::string_view what, long number,
                            std::array<std::uint64_t, 6> arguments);

  /// A second view of the thread, never detached here, so that its owner may move.
  Tracee tracee_;
  CallPlace place_;
  arch::GeneralRegisters saved_ = {};
  std::uint64_t saved_mask_ = 0;
  std::vector<std::byte> frame_;         // for `place_`, until it is there
  std::vector<arch::CallInside> calls_;  // from PrepareAll() to StartAll()
  std::uint64_t calls_at_ = 0;
  int calls_signal_ = 0;
  bool entered_ = false;               // the registers are ours
  std::optional<std::uint64_t> mask_;  // that it has, once it is ours
  std::uint64_t used_ = 0;
  bool stop_pending_ = false;  // a SIGSTOP came that is the thread's, not ours
  bool in_signal_stop_ =
      false;  // it stands where the kernel goes on to look at an interrupted call
};

/// Makes the area in the process of the stopped thread `tracee`: at `address`, which must be free there,
/// or where the kernel chooses. The calls for that run in a Foothold.
Result<RemoteArea> MakeArea(Tracee& tracee, std::optional<std::uint64_t> address);
/// Unmaps the area, by the same way.
Status RemoveArea(Tracee& tracee, const RemoteArea& area);

}  // namespace stasis::engine
