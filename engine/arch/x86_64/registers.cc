// Registers by ptrace, and system calls made through them.
//
// Source  ptrace(2), signal(7); arch/x86/kernel/ptrace.c, arch/x86/entry/syscalls; tested on 6.18
#include <elf.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "engine/arch/arch.h"

extern "C" const char stasis_homeward_begin[], stasis_homeward_end[];

namespace stasis::engine::arch {
namespace {

// Kernel-internal results of an interrupted system call, include/linux/errno.h.
constexpr std::int64_t kErestartsys = -512;
constexpr std::int64_t kErestartnointr = -513;
constexpr std::int64_t kErestartnohand = -514;
constexpr std::int64_t kErestartRestartblock = -516;
constexpr std::uint64_t kSyscallBytes = 2;

// Larger than any processor's XSAVE area (AMX: about 11 KiB).
constexpr std::size_t kMaxExtendedBytes = 64 << 10;

std::string Name(const char* request, pid_t tid) {
  return std::string("ptrace ") + request + " tid " + std::to_string(tid);
}

bool InSyscall(const GeneralRegisters& registers) {
  return static_cast<std::int64_t>(registers.orig_rax) >= 0;
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
  Registers registers;
  ASSIGN_OR_RETURN(registers.general, ReadGeneral(tid));
  registers.extended.resize(kMaxExtendedBytes);
  iovec area = {registers.extended.data(), registers.extended.size()};
  if (::ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &area) != 0) {
    return SyscallError(errno, Name("GETREGSET NT_X86_XSTATE", tid));
  }
  registers.extended.resize(area.iov_len);
  return registers;
}

Status Write(pid_t tid, const Registers& registers) {
  std::vector<std::byte> extended = registers.extended;
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

std::int64_t SyscallResult(const GeneralRegisters& registers) {
  return static_cast<std::int64_t>(registers.rax);
}

GeneralRegisters AsRestarted(GeneralRegisters registers) {
  if (InSyscall(registers)) {
    switch (static_cast<std::int64_t>(registers.rax)) {
      case kErestartsys:
      case kErestartnointr:
      case kErestartnohand:
        registers.rax = registers.orig_rax;
        registers.rip -= kSyscallBytes;
        break;
      case kErestartRestartblock:
        registers.rax = static_cast<std::uint64_t>(-EINTR);
        break;
      default:
        break;
    }
  }
  return registers;
}

bool HasRestartBlock(const GeneralRegisters& registers) {
  return InSyscall(registers) &&
         static_cast<std::int64_t>(registers.rax) == kErestartRestartblock;
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
