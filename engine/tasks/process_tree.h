// The processes of a tree under restore: made with their pids, parents, sessions, groups and programs.
#pragma once

#include <functional>
#include <vector>

#include "engine/image/image_io.h"
#include "engine/tasks/pid_reserver.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// ptrace options of everything under restore: it dies with us, new tasks are seized, seccomp filters do
/// not judge our calls (PTRACE_O_SUSPEND_SECCOMP needs CAP_SYS_ADMIN in the initial user namespace).
unsigned RestoreOptions();

/// Seizes `placeholder`, puts our area at `area_address` and makes it ready for calls.
Result<RestoredProcess> TakePlaceholder(pid_t placeholder, const ProcessImage& image,
                                        std::uint64_t area_address);

/// A descriptor of `process`, O_CLOEXEC, for what our `our_fd` has open. Uses the argument room of
/// `process.remote` and gives all of it back.
Result<int> SendInto(RestoredProcess& process, int our_fd);

/// Its descriptor `number`, which is ours then and closed there.
Result<UniqueFd> TakeFrom(RestoredProcess& process, int number);

/// Lets `process` execute the program of its image, found in its mount namespace, so that /proc/PID/exe is right, and stops it before
/// its first instruction. FailedPrecondition: the file is missing or another one.
Status ExecuteProgram(RestoredProcess& process, const CheckpointImages& images,
                      const PathlessFiles& pathless);

/// Called for each process that lives once it runs its program, before it has children: with the image of
/// the process whose fork it is and whose memory it has, or null when it was executed.
using Furnish = std::function<Status(RestoredProcess& process, const ProcessImage* forked_from)>;

/// Called for each leader of a session before it has children there: they inherit its controlling terminal.
using Lead = std::function<Status(RestoredProcess& leader)>;

/// Forks all other processes of `images` below the root, which `processes` has, and adds them in the order of
/// `images`. Zombies are made too, still alive. AlreadyExists: a pid is taken. When it fails, `processes` has all
/// that there are, others than those of `images` too, to be killed and waited for: none of them may run.
/// `prepare`: called for each that is to execute another program, before it does.
Status MakeProcesses(std::vector<RestoredProcess>& processes, const CheckpointImages& images,
                     const PathlessFiles& pathless, PidReserver& reserver,
                     const std::function<Status(RestoredProcess&)>& prepare, const Furnish& furnish,
                     const Lead& lead);

/// Ends the zombies as they ended, and throws away the SIGCHLDs that their parents got by it.
Status EndZombies(std::vector<RestoredProcess>& processes);

}  // namespace stasis::engine
