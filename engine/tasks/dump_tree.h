// The tree as a whole: whether it can be dumped, its shape in the images, its end.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "engine/image/image_io.h"
#include "engine/tasks/dump_namespaces.h"
#include "engine/tasks/dumped_process.h"

namespace stasis::engine {

/// "pid 7 (redis-server)": how messages name a process.
std::string Name(const FrozenProcess& process);
std::string Name(const FrozenThread& thread);

/// InvalidArgument: `root` is no process, we ourselves or an ancestor of ours, or a kernel thread.
/// NotFound: there is none.
Status CheckRoot(pid_t root);

/// Unimplemented when processes share what images cannot tell as shared, or their root directory,
/// executable or working directory cannot be named.
Status CheckTree(const FrozenTree& tree);

/// Unimplemented: the thread has left what it shared with the others of its process, by unshare(2). By any thread
/// of ours.
Status CheckShares(const FrozenProcess& process, const FrozenThread& thread);

/// Fills pstree entries and object numbers of all `processes`.
void NumberTasks(std::vector<DumpedProcess>& processes, const NamespaceDumper& namespaces);

/// The number of each process's descriptor table; 0 for a zombie's.
std::vector<std::uint32_t> TableIds(const std::vector<DumpedProcess>& processes);

/// Unimplemented when no order of forks would make the numbered `processes` again.
Status CheckForks(const std::vector<DumpedProcess>& processes);

/// A sentence for each process in the pid namespace of the tree, when that is not ours, which
/// neither is of `pids` (as we see them) nor descends from one.
std::vector<std::string> NameStrangers(const std::set<pid_t>& pids,
                                       const NamespaceDumper& namespaces);

/// pstree.img, and core, ids, mm and fs images of every task, with the `ids` of its user namespace.
Status WriteTaskImages(std::vector<DumpedProcess>& processes, const UserIds& ids, ImageSink& sink);

/// Ends every process of the tree, and waits until all are gone.
Status KillAll(FrozenTree& tree);
/// Lets them go into a group-stop (SIGSTOP).
Status StopAll(FrozenTree& tree);

}  // namespace stasis::engine
