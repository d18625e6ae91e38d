// Source  namespaces(7)
// Rule    In the images a namespace that was the dumper's has the number of the inventory's root_ids
#include "engine/tasks/restore_namespaces.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

namespace stasis::engine {
namespace {

using Ids = image::TaskKobjIdsEntry;

struct Kind {
  const char* name;
  std::uint32_t (Ids::*number)() const;
  const char* holds;
};
// That of pids is checked by the pid of the root, those of users and cgroups are refused or made.
constexpr Kind kKinds[] = {
    {"mnt", &Ids::mnt_ns_id, "mounts"},
    {"net", &Ids::net_ns_id, "network interfaces and connections"},
    {"uts", &Ids::uts_ns_id, "host name"},
    {"ipc", &Ids::ipc_ns_id, "System V objects and message queues"},
};

}  // namespace

Status NoteMissingNamespaces(const CheckpointImages& images, int root_proc,
                             std::vector<std::string>& notes) {
  for (const Kind& kind : kKinds) {
    const std::uint32_t before = (images.processes.front().ids.*kind.number)();
    const std::uint32_t dumper = (images.inventory.root_ids().*kind.number)();
    if (before == 0 || dumper == 0 || before == dumper) continue;
    const std::string link = std::string("ns/") + kind.name;
    struct stat here = {}, ours = {};
    if (::fstatat(root_proc, link.c_str(), &here, 0) != 0 ||
        ::stat(("/proc/thread-self/" + link).c_str(), &ours) != 0) {
      return SyscallError(errno, "stat /proc/PID/" + link);
    }
    if (here.st_ino != ours.st_ino) continue;
    notes.push_back("the tree had a " + std::string(kind.name) +
                    " namespace of its own, and is in that of this restore now: the " + kind.holds +
                    " are those of here (start the restore in one that is prepared, nsenter(1))");
  }
  return OkStatus();
}

}  // namespace stasis::engine
