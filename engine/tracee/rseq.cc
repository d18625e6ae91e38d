// Source  rseq(2), ptrace(2) PTRACE_GET_RSEQ_CONFIGURATION, kernel/rseq.c; tested on 6.18
// Rule    A thread that is preempted within a sequence goes on at its abort handler. The kernel forgets the
//         sequence (rseq_cs) at the next return to user mode elsewhere: what runs in the thread for us would
//         end it unseen.
#include "engine/tracee/rseq.h"

#include <sys/ptrace.h>

#include <cerrno>
#include <span>
#include <string>

#include "engine/tracee/tracee.h"

namespace stasis::engine {
namespace {

// uapi/linux/ptrace.h and rseq.h; Debian 12's glibc hides or lacks them.
static_assert(sizeof(RseqConfiguration) == 24);
struct Sequence {
  std::uint32_t version, flags;
  std::uint64_t start, post_commit_offset, abort;
};
static_assert(sizeof(Sequence) == 32);
constexpr std::uint64_t kSequenceOffset = 8;  // rseq_cs in struct rseq

}  // namespace

Result<RseqConfiguration> ReadRseqConfiguration(pid_t tid) {
  RseqConfiguration configuration = {};
  if (::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof(configuration), &configuration) < 0) {
    return SyscallError(errno, "ptrace GET_RSEQ_CONFIGURATION");
  }
  return configuration;
}

Result<bool> AbortSequence(pid_t tid, const RseqConfiguration& configuration,
                           arch::GeneralRegisters& registers) {
  if (configuration.pointer == 0) return false;
  std::uint64_t address = 0;
  RETURN_IF_ERROR(ReadMemory(tid, configuration.pointer + kSequenceOffset,
                             std::as_writable_bytes(std::span(&address, 1))));
  if (address == 0) return false;
  Sequence sequence = {};
  // A stale pointer is legal: the kernel too looks only when the thread is preempted.
  if (!ReadMemory(tid, address, std::as_writable_bytes(std::span(&sequence, 1))).ok()) return false;
  const std::uint64_t ip = arch::InstructionPointer(registers);
  if (ip - sequence.start >= sequence.post_commit_offset) return false;
  arch::SetInstructionPointer(registers, sequence.abort);
  return true;
}

Status LeaveSequence(pid_t tid) {
  ASSIGN_OR_RETURN(const RseqConfiguration configuration, ReadRseqConfiguration(tid));
  ASSIGN_OR_RETURN(arch::GeneralRegisters registers, arch::ReadGeneral(tid));
  ASSIGN_OR_RETURN(const bool aborted, AbortSequence(tid, configuration, registers));
  return aborted ? arch::WriteGeneral(tid, registers) : OkStatus();
}

}  // namespace stasis::engine
