// All that depends on the processor: registers, the system call convention, the signal frame, the code
// that runs inside a tracee. One implementation a folder beside this file.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/base/packed_bytes.h"
#include "engine/base/status.h"
#include "engine/image/schema/tasks.pb.h"

namespace stasis::engine::arch {

/// AUDIT_ARCH_X86_64, include/uapi/linux/audit.h: the system calls that we make, to seccomp(2).
inline constexpr std::uint32_t kAuditArchitecture = 0xc000'003e;

/// General registers as PTRACE_GETREGS gives them.
using GeneralRegisters = user_regs_struct;

/// All registers of a thread. `extended` is the regset NT_X86_XSTATE: the XSAVE area in standard format, of which most
/// threads use little.
struct Registers {
  GeneralRegisters general = {};
  PackedBytes extended;
};

/// The thread must be in a ptrace stop of the calling thread. Unimplemented: a 32-bit task.
Result<GeneralRegisters> ReadGeneral(pid_t tid);
Status WriteGeneral(pid_t tid, const GeneralRegisters& registers);
Result<Registers> Read(pid_t tid);
/// The rest of them, where `general` are known already.
Result<Registers> ReadExtended(pid_t tid, const GeneralRegisters& general);
Status Write(pid_t tid, const Registers& registers);

/// `registers` set up to run system call `number` at instruction `syscall_address` with its stack at
/// `stack`. The kernel is told that no system call is to be restarted (orig_rax = -1), since it would
/// otherwise rewind into our code (arch_do_signal_or_restart).
GeneralRegisters ForSyscall(GeneralRegisters registers, std::uint64_t syscall_address,
                            std::uint64_t stack, long number,
                            const std::array<std::uint64_t, 6>& arguments);
/// The result of the system call that just ended: -4095 to -1 is an error.
std::int64_t SyscallResult(const GeneralRegisters& registers);

/// The system call in or behind which a thread stopped. `result` may be one of the kernel's own: it says
/// how an interrupted call is to be restarted.
struct SystemCall {
  long number = 0;
  std::array<std::uint64_t, 6> arguments = {};
  std::int64_t result = 0;
};
/// -ERESTART_RESTARTBLOCK, include/linux/errno.h: restart_syscall(2) goes on with what the kernel has noted.
inline constexpr std::int64_t kRestartBlock = -516;
/// -ERESTARTNOHAND: the call is issued again unless a signal handler comes first, which makes it EINTR.
inline constexpr std::int64_t kRestartUnlessHandled = -514;
/// True for that and its like, -ERESTARTSYS and -ERESTARTNOINTR.
constexpr bool IsIssuedAgain(std::int64_t result) {
  return result <= -512 && result >= kRestartUnlessHandled;
}
/// Nothing when the thread stopped elsewhere.
std::optional<SystemCall> CallAt(const GeneralRegisters& registers);
/// Number and result of `call` into registers that CallAt found it in.
void SetCall(const SystemCall& call, GeneralRegisters& registers);

/// What a thread without the kernel's notes (an image, a signal frame) goes on with: a call that was
/// interrupted is issued again. One with a restart block then waits for its whole time once more, which a
/// program must expect, as it must not expect EINTR; only futex(2), which says EINTR by contract, keeps to
/// its time and says so. signal(7), arch_do_signal_or_restart() in arch/x86/kernel/signal.c
GeneralRegisters AsRestarted(GeneralRegisters registers);

std::uint64_t InstructionPointer(const GeneralRegisters& registers);
void SetInstructionPointer(GeneralRegisters& registers, std::uint64_t address);
std::uint64_t StackPointer(const GeneralRegisters& registers);
/// Bytes below the stack pointer that the ABI lets a function use without moving it.
inline constexpr std::uint64_t kRedZoneBytes = 128;

/// Position-independent code: a system call instruction, and behind it rt_sigreturn(2). A thread that
/// runs on from there by itself, because its tracer died, finds its way home through the signal frame
/// that lies at its stack pointer. Behind that, code that makes several calls, and goes home alike.
std::span<const std::byte> HomewardCode();

/// One of several calls.
struct CallInside {
  std::uint64_t number = 0;
  std::array<std::uint64_t, 6> arguments = {};
  std::int64_t result = kNotMade;

  static constexpr std::int64_t kNotMade = INT64_MIN;  // which no call gives
};
static_assert(sizeof(CallInside) == 64);
/// `registers` set up to make the `count` calls that lie at `table`, by the HomewardCode at `code`.
GeneralRegisters ForCalls(const GeneralRegisters& registers, std::uint64_t code,
                          std::uint64_t stack, std::uint64_t table, std::size_t count);
/// The instruction behind the system call of those.
std::uint64_t BehindCall(std::uint64_t code);

/// Code that goes on at `address`, with all registers as they are.
std::vector<std::byte> JumpTo(std::uint64_t address);
/// Code that does by a system call what the vDSO's function of that name does, vdso(7). Empty: nobody knows how.
std::vector<std::byte> InsteadOfVdso(std::string_view name);

/// A frame from which rt_sigreturn(2) restores `registers` and `signal_mask`, to be placed at `address`
/// (64-byte aligned); the stack pointer for the system call is address + FrameStackOffset().
/// A system call under way is rewound as AsRestarted does.
std::vector<std::byte> SignalFrame(const Registers& registers, std::uint64_t signal_mask,
                                   std::uint64_t address);
std::uint64_t FrameStackOffset();
/// Whether there is a frame in `stack`, bytes from an address that 8 divides, which a signal has put there that met its
/// thread at `begin` or behind, and before `end`.
bool HasFrameFrom(std::span<const std::byte> stack, std::uint64_t begin, std::uint64_t end);

/// Registers to core-TID.img. CheckForImage gives Unimplemented for what it has no place for.
Status CheckForImage(const Registers& registers);
void ToImage(const Registers& registers, image::CoreEntry& core);
/// Lies beside them.
void SetClearTidAddress(std::uint64_t address, image::CoreEntry& core);
/// And from there. `model`: the registers of a thread of this host, for the size and features of its extended state.
/// FailedPrecondition: the image has state that this processor does not.
Result<Registers> FromImage(const image::CoreEntry& core, const Registers& model);
/// Takes the extended ones, most of its room, out of an image, to be put back before FromImage.
PackedBytes TakeExtended(image::CoreEntry& core);
void PutExtended(const PackedBytes& extended, image::CoreEntry& core);
std::uint64_t InstructionPointerOf(const image::CoreEntry& core);
std::uint64_t StackPointerOf(const image::CoreEntry& core);
/// The call that AsRestarted found in the registers of an image.
SystemCall CallOf(const image::CoreEntry& core);
/// Makes `registers`, as an image has them, those of a thread at the end of that call, which gave
/// `call.result`.
void PutAtEnd(const SystemCall& call, GeneralRegisters& registers);

}  // namespace stasis::engine::arch
