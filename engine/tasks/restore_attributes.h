// What a process and its threads are besides memory and descriptors.
#pragma once

#include <string>
#include <vector>

#include "engine/tasks/pid_reserver.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

class Labels;  // security_label.h

/// What the restore's report is told: rights or limits that the live container does not give.
using Notes = std::vector<std::string>;

/// Threads besides the leader, with their ids, each at rest in our area.
Status MakeThreads(RestoredProcess& process, PidReserver& reserver);

/// Working directory, umask, personality, prctl flags, resource limits; then of each thread its name,
/// robust list, alternate stack, rseq, scheduling. Memory must be in place.
Status RestoreAttributes(RestoredProcess& process, const CheckpointImages& images,
                         const PathlessFiles& pathless, Notes& notes);

/// A root directory of its own, while it still has the rights for that, and nothing more is looked up by
/// paths of the tree.
Status RestoreRoot(RestoredProcess& process, const CheckpointImages& images);

/// True when the process was stopped, or about to be, by SIGSTOP: it is sent once our calls are done.
bool IsToStop(const ProcessImage& process);

/// Signal actions, pending signals, interval and POSIX timers. After all zombies have ended.
Status RestoreSignals(RestoredProcess& process);

/// Credentials, seccomp filters and label of every thread: never more than the live process has.
/// `live_filters` are the filters that the runtime put on the placeholder, oldest first.
/// FailedPrecondition: the process ran under an id that this container may not take.
Status RestoreConfinement(RestoredProcess& process, const CheckpointImages& images,
                          const std::vector<std::string>& live_filters, const Labels& labels,
                          Notes& notes);

/// The seccomp filters of a stopped thread as the kernel gives them (struct sock_filter), oldest first.
Result<std::vector<std::string>> ReadSeccompFilters(pid_t tid);

/// The waits that the dump interrupted, for what was left of them. When all that they may wait for is there.
Status BeginWaits(RestoredProcess& process);

/// The registers and signal mask of every thread of `process`, our area unmapped: it only has to be let go.
Status SetFinalRegisters(RestoredProcess& process);

/// Runs `work` with calls made in a thread that is not the leader.
template <typename Work>
Status RunIn(const RestoredProcess& process, RestoredProcess::Thread& thread, Work work) {
  ASSIGN_OR_RETURN(RemoteSyscalls remote,
                   RemoteSyscalls::Begin(thread.tracee, process.area.place()));
  const Status status = work(*thread.image, remote);
  remote.Abandon();  // its registers are set when all is done
  return Annotate(status, "tid " + std::to_string(thread.image->tid));
}

/// Runs `work` in each thread of `process`, leader first, with calls made in that thread.
template <typename Work>
Status ForEachThread(RestoredProcess& process, Work work) {
  process.remote->ResetArguments();
  RETURN_IF_ERROR(work(process.image->leader(), *process.remote));
  for (RestoredProcess::Thread& thread : process.others) {
    RETURN_IF_ERROR(RunIn(process, thread, work));
  }
  return OkStatus();
}

}  // namespace stasis::engine
