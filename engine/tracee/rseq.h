// Restartable sequences, rseq(2), of a thread that stands still.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "engine/arch/arch.h"
#include "engine/base/status.h"

namespace stasis::engine {

/// What PTRACE_GET_RSEQ_CONFIGURATION tells.
struct RseqConfiguration {
  std::uint64_t pointer;  ///< Of the thread's struct rseq; 0: it has none.
  std::uint32_t size, signature, flags, padding;
};

Result<RseqConfiguration> ReadRseqConfiguration(pid_t tid);

/// When the thread with `registers` is within a sequence, lets it go on at the sequence's abort handler, as
/// the kernel does with one that it preempts, and gives true; the registers are not written to the thread.
Result<bool> AbortSequence(pid_t tid, const RseqConfiguration& configuration,
                           arch::GeneralRegisters& registers);

/// The same in the thread itself, before anything else runs in it.
Status LeaveSequence(pid_t tid);

}  // namespace stasis::engine
