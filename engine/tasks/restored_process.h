// A process on its way to what its image says. It is stopped, traced by us, and dies with us.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/checkpoint_images.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/remote_syscalls.h"
#include "engine/tracee/tracee.h"

namespace stasis::engine {

/// Open files of the images that have no path to be opened by, in our table; by the id of their REG or MEMFD
/// entry.
using PathlessFiles = std::map<std::uint32_t, UniqueFd>;

struct RestoredProcess {
  const ProcessImage* image = nullptr;
  pid_t pid = 0;  ///< As we see it.
  UniqueFd pidfd;
  UniqueFd proc;  ///< Directory /proc/PID.
  Tracee leader;
  RemoteArea area;
  /// Calls run in the leader. Its own registers, that of a placeholder or a fresh program, are never
  /// needed again.
  std::optional<RemoteSyscalls> remote;

  /// The wait that the leader goes on with, once it is begun.
  std::optional<arch::SystemCall> wait = {};

  struct Thread {
    const ThreadImage* image = nullptr;
    Tracee tracee;
    std::optional<arch::SystemCall> wait = {};
  };
  std::vector<Thread> others;  ///< Threads besides the leader, once they are made.
};

/// How the leader of a process under restore makes several calls in one run. Any signal will do: the tree ends
/// with its tracer, and what a tracer does not pass on has no effect.
Result<OneRun> RunOf(const RestoredProcess& process);

}  // namespace stasis::engine
