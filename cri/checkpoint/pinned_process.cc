// Source  pidfd_open(2); cgroups(7); OCI runtime spec, config-linux.md (cgroupsPath), and runc's form of it for
//         systemd: SLICE:PREFIX:NAME
#include "cri/checkpoint/pinned_process.h"

#include <absl/strings/str_split.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "archive/json_fields.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

// The container's own folder among the cgroups; empty where the runtime made none.
std::string CgroupName(const nlohmann::json& spec) {
  const std::string path = archive::TextField(archive::Field(spec, "linux"), "cgroupsPath");
  const std::vector<std::string> parts = absl::StrSplit(path, ':');
  if (parts.size() != 3) return path.substr(path.rfind('/') + 1);
  if (parts[2].ends_with(".slice")) return parts[2];
  return (parts[1].empty() ? "" : parts[1] + "-") + parts[2] + ".scope";
}

// Anywhere in its path: what runs in a container may make cgroups below its own.
bool IsInCgroup(const std::string& proc_cgroup, const std::string& name) {
  for (const absl::string_view line : absl::StrSplit(proc_cgroup, '\n')) {
    const std::vector<std::string> folders = absl::StrSplit(line, '/');
    if (std::ranges::find(folders, name) != folders.end()) return true;
  }
  return false;
}

}  // namespace

Result<PinnedProcess> PinnedProcess::Of(const ContainerFacts& facts) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, facts.pid, 0)));
  if (!pidfd) {
    const int error = errno;
    return SyscallError(error, "the first process of container " + facts.status.id());
  }
  PinnedProcess pinned(std::move(pidfd), facts);
  const std::string name = CgroupName(facts.spec);
  if (name.empty()) return pinned;
  const Result<std::string> cgroups =
      ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(facts.pid) + "/cgroup");
  RETURN_IF_ERROR(pinned.StillThere());
  RETURN_IF_ERROR(cgroups.status());
  if (IsInCgroup(*cgroups, name)) return pinned;
  return FailedPrecondition("pid " + std::to_string(facts.pid) +
                            ", which the runtime calls the first process of container " +
                            facts.status.id() + ", is not in its cgroup " + name +
                            ": the container has ended, or its program has left the cgroup");
}

Status PinnedProcess::StillThere() const {
  pollfd ended = {pidfd_.get(), POLLIN, 0};
  if (::poll(&ended, 1, 0) == 0) return OkStatus();
  return NotFound("the first process of container " + id_ + " has ended");
}

}  // namespace stasis::cri
