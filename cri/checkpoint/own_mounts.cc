// Source  openat2(2) RESOLVE_IN_ROOT, proc_pid_fdinfo(5) mnt_id, proc_pid_mountinfo(5); OCI runtime
//         specification (mounts, linux.maskedPaths, linux.readonlyPaths)
// Rule    A mount is known by its id, not by its place: the specification's places may lead through links.
// Rule    A bind mount of "rbind" brings those below it along, and a cgroup mount has one for each hierarchy.
#include "cri/checkpoint/own_mounts.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "archive/json_fields.h"
#include "engine/base/io.h"
#include "engine/proc/fdinfo.h"
#include "engine/proc/mountinfo.h"

namespace stasis::cri {
namespace {

// The id of the mount that `path` in `root` leads to; 0 when there is no such path.
Result<int> MountAt(int root, const std::string& path) {
  open_how how = {};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT;
  const UniqueFd fd(
      static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof(how))));
  if (!fd) {
    if (errno == ENOENT || errno == ENOTDIR) return 0;
    return SyscallError(errno, "open " + path);
  }
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/self/fdinfo/" + std::to_string(fd.get())));
  ASSIGN_OR_RETURN(const engine::Fdinfo info, engine::ParseFdinfo(text));
  return info.mnt_id;
}

bool BringsOthers(const nlohmann::json& mount) {
  const auto& options = archive::ArrayField(mount, "options");
  return archive::TextField(mount, "type").starts_with("cgroup") ||
         std::ranges::any_of(options, [](const auto& option) { return option == "rbind"; });
}

}  // namespace

Status RefuseOwnMounts(const ContainerFacts& facts) {
  const std::string proc = "/proc/" + std::to_string(facts.pid);
  ASSIGN_OR_RETURN(const UniqueFd root, OpenAt(AT_FDCWD, proc + "/root", O_PATH | O_DIRECTORY));
  std::set<int> known, with_others;
  const auto add = [&](const std::string& path, std::set<int>& to) -> Status {
    ASSIGN_OR_RETURN(const int id, MountAt(root.get(), path));
    if (id != 0) to.insert(id);
    return OkStatus();
  };
  for (const nlohmann::json& mount : archive::ArrayField(facts.spec, "mounts")) {
    const std::string place = archive::TextField(mount, "destination");
    RETURN_IF_ERROR(add(place, known));
    if (BringsOthers(mount)) RETURN_IF_ERROR(add(place, with_others));
  }
  const nlohmann::json& restrictions = archive::Field(facts.spec, "linux");
  for (const char* const list : {"maskedPaths", "readonlyPaths"}) {
    for (const nlohmann::json& path : archive::ArrayField(restrictions, list)) {
      if (path.is_string()) RETURN_IF_ERROR(add(path.get<std::string>(), known));
    }
  }
  for (const char* const path : {"/", "/dev/console"}) RETURN_IF_ERROR(add(path, known));

  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, proc + "/mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<engine::Mount> mounts, engine::ParseMountinfo(text));
  std::map<int, int> parents;
  for (const engine::Mount& mount : mounts) parents.emplace(mount.id, mount.parent);
  const auto brought_along = [&](int id) {
    for (std::size_t depth = 0; depth < mounts.size() && parents.contains(id); ++depth) {
      id = parents[id];
      if (with_others.contains(id)) return true;
    }
    return false;
  };
  for (const engine::Mount& mount : mounts) {
    if (known.contains(mount.id) || brought_along(mount.id)) continue;
    return Unimplemented("a process of the container has mounted " + mount.fs_type + " at " +
                         mount.mountpoint +
                         ", which a restored container would lack; mounts of a container's own "
                         "cannot be checkpointed yet");
  }
  return OkStatus();
}

}  // namespace stasis::cri
