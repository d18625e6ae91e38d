// Registers by ptrace, and system calls made through them.
//
// Source  ptrace(2), signal(7); arch/x86/kernel/ptrace.c, arch/x86/entry/syscalls; tested on 6.18
#include <elf.h>
#include <linux/futex.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "engine/arch/arch.h"

extern "C" const char stasis_homeward_begin[], stasis_homeward_end[];
extern "C" const char stasis_calls_begin[], stasis_calls_made[];

namespace stasis::engine::arch {
namespace {

constexpr std::uint64_t kSyscallBytes = 2;

// Larger than any processor's XSAVE area (AMX: about 11 KiB).
constexpr std::size_t kMaxExtendedBytes = 64 << 10;

std::string Name(const char* request, pid_t tid) {
  return std::string("ptrace ") + request + " tid " + std::to_string(tid);
}

bool InSyscall(const GeneralRegisters& registers) {
  return static_cast<std::int64_t>(registers.orig_rax) >= 0;
}

// FUTEX_WAIT takes the time from now on; FUTEX_WAIT_BITSET, the other one with a restart block, a date.
bool IsFutexWait(const GeneralRegisters& registers) {
  return registers.orig_rax == SYS_futex && (registers.rsi & FUTEX_CMD_MASK) == FUTEX_WAIT;
}

}  // namespace

Result<GeneralRegisters> ReadGeneral(pid_t tid) {
  GeneralRegisters registers = {};
  iovec area = {&registers, sizeof(registers)};
  if (::ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &area) != 0) {
    return SyscallError(errno, Name("GETREGSET NT_PRSTATUS", tid));
  }
  if (area.iov_len != sizeof(registers)) {
    return Unimplemented("tid " + std::to_string(tid) + " runs 32-bit code");
  }
  return registers;
}

Status WriteGeneral(pid_t tid, const GeneralRegisters& registers) {
  GeneralRegisters copy = registers;
  iovec area = {&copy, sizeof(copy)};
  if (::ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &area) != 0) {
    return SyscallError(errno, Name("SETREGSET NT_PRSTATUS", tid));
  }
  return OkStatus();
}

Result<Registers> Read(pid_t tid) {
  ASSIGN_OR_RETURN(const GeneralRegisters general, ReadGeneral(tid));
  return ReadExtended(tid, general);
}

Result<Registers> ReadExtended(pid_t tid, const GeneralRegisters& general) {
  Registers registers = {.general = general, .extended = {}};
  // Not the room for the largest with each of thousands of threads.
  alignas(64) thread_local std::array<std::byte, kMaxExtendedBytes> room;
  iovec area = {room.data(), room.size()};
  if (::ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &area) != 0) {
    return SyscallError(errno, Name("GETREGSET NT_X86_XSTATE", tid));
  }
  registers.extended = PackedBytes(std::span(room).first(area.iov_len));
  return registers;
}

Status Write(pid_t tid, const Registers& registers) {
  std::vector<std::byte> extended = registers.extended.Unpack();
  iovec area = {extended.data(), extended.size()};
  if (::ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, &area) != 0) {
    return SyscallError(errno, Name("SETREGSET NT_X86_XSTATE", tid));
  }
  return WriteGeneral(tid, registers.general);
}

GeneralRegisters ForSyscall(GeneralRegisters registers, std::uint64_t syscall_address,
                            std::uint64_t stack, long number,
                            const std::array<std::uint64_t, 6>& arguments) {
  constexpr std::uint64_t kTrapAndDirectionFlags = 0x100 | 0x400;
  registers.eflags &= ~kTrapAndDirectionFlags;
  registers.rip = syscall_address;
  registers.rsp = stack;
  registers.rax = static_cast<std::uint64_t>(number);
  registers.orig_rax = ~std::uint64_t{0};
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  return registers;
}

GeneralRegisters ForCalls(const GeneralRegisters& registers, std::uint64_t code,
                          std::uint64_t stack, std::uint64_t table, std::size_t count) {
  const auto offset = static_cast<std::uint64_t>(stasis_calls_begin - stasis_homeward_begin);
  GeneralRegisters calling = ForSyscall(registers, code + offset, stack, 0, {});
  calling.rbx = table;
  calling.r12 = count;
  return calling;
}

std::uint64_t BehindCall(std::uint64_t code) {
  return code + static_cast<std::uint64_t>(stasis_calls_made - stasis_homeward_begin);
}

std::int64_t SyscallResult(const GeneralRegisters& registers) {
  return static_cast<std::int64_t>(registers.rax);
}

std::optional<SystemCall> CallAt(const GeneralRegisters& r) {
  if (!InSyscall(r)) return std::nullopt;
  return SystemCall{.number = static_cast<long>(r.orig_rax),
                    .arguments = {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9},
                    .result = static_cast<std::int64_t>(r.rax)};
}

void SetCall(const SystemCall& call, GeneralRegisters& registers) {
  registers.orig_rax = static_cast<std::uint64_t>(call.number);
  registers.rax = static_cast<std::uint64_t>(call.result);
}

GeneralRegisters AsRestarted(GeneralRegisters registers) {
  const std::optional<SystemCall> call = CallAt(registers);
  if (!call) return registers;
  const bool has_restart_block = call->result == kRestartBlock;
  // Nobody has told which call restart_syscall(2) went on with.
  if (has_restart_block && (call->number == SYS_restart_syscall || IsFutexWait(registers))) {
    registers.rax = static_cast<std::uint64_t>(-EINTR);
  } else if (has_restart_block || IsIssuedAgain(call->result)) {
    registers.rax = registers.orig_rax;
    registers.rip -= kSyscallBytes;
  }
  return registers;
}

std::uint64_t InstructionPointer(const GeneralRegisters& registers) { return registers.rip; }
void SetInstructionPointer(GeneralRegisters& registers, std::uint64_t address) {
  registers.rip = address;
}
std::uint64_t StackPointer(const GeneralRegisters& registers) { return registers.rsp; }

std::span<const std::byte> HomewardCode() {
  return std::as_bytes(std::span(stasis_homeward_begin, stasis_homeward_end));
}

}  // namespace stasis::engine::arch
