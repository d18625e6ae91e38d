// What /proc tells anybody of the threads of a frozen tree: looked at by a thread of ours, beside the one
// that traces and asks by ptrace(2).
#pragma once

#include <atomic>
#include <cstddef>
#include <future>
#include <string>
#include <vector>

#include "engine/image/schema/tasks.pb.h"
#include "engine/tasks/cgroups.h"
#include "engine/tasks/dump_namespaces.h"
#include "engine/tasks/dumped_process.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

class BesideLook {
 public:
  /// Begins to look. Both must stay as they are, and where they are.
  BesideLook(const FrozenTree& tree, const NamespaceDumper& namespaces);
  BesideLook(const BesideLook&) = delete;
  BesideLook& operator=(const BesideLook&) = delete;
  ~BesideLook();

  /// Helps to look at what is left, and adds what was seen to `cgroups` and to `processes`, those of the tree
  /// in its order. Unimplemented: a thread that is not in the tree's namespaces.
  Status Take(std::vector<DumpedProcess>& processes, CgroupDumper& cgroups);

 private:
  struct Seen {
    const FrozenProcess* process;
    const FrozenThread* thread;
    image::ThreadCoreEntry settings = {};
    std::string cgroups = {};
  };
  Status LookAt(Seen& seen) const;
  Status LookAtTheRest();

  const NamespaceDumper& namespaces_;
  std::vector<Seen> threads_;  // of the tree, in its order
  std::atomic<std::size_t> next_ = 0;
  std::future<Status> other_;
};

}  // namespace stasis::engine
