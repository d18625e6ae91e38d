// Source  Documentation/admin-guide/cgroup-v1/*.rst, cgroup-v2.rst; tested on 6.18
// Rule    A file of several lines takes one line a write; devices.list is read, devices.deny and
//         devices.allow are written; memory.oom_control shows names, and takes a number.
// Rule    Where two settings bound each other the wider one comes first: the order of kSettings.
// Rule    cgroup.subtree_control takes names with a sign, and shows them without.
#include "engine/tasks/cgroup_settings.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "engine/base/io.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::string_view kSettings[] = {
    // Version 1
    "cgroup.clone_children", "notify_on_release", "cpuset.cpus", "cpuset.mems",
    "cpuset.cpu_exclusive", "cpuset.mem_exclusive", "cpuset.mem_hardwall", "cpuset.memory_migrate",
    "cpuset.memory_spread_page", "cpuset.memory_spread_slab", "cpuset.sched_load_balance",
    "cpuset.sched_relax_domain_level", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us",
    "cpu.cfs_burst_us", "cpu.rt_period_us", "cpu.rt_runtime_us", "memory.use_hierarchy",
    "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes",
    "memory.kmem.tcp.limit_in_bytes", "memory.swappiness", "memory.move_charge_at_immigrate",
    "memory.oom_control", "devices.list", "blkio.weight", "blkio.bfq.weight",
    "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device", "net_cls.classid",
    "net_prio.ifpriomap", "pids.max",
    // Version 2; what else it has in common is above
    "cgroup.subtree_control", "cgroup.max.depth", "cgroup.max.descendants", "cpuset.cpus.partition",
    "cpu.weight", "cpu.max", "cpu.max.burst", "cpu.idle", "cpu.uclamp.min", "cpu.uclamp.max",
    "memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max", "memory.swap.high",
    "memory.zswap.max", "memory.zswap.writeback", "memory.oom.group", "io.weight", "io.bfq.weight",
    "io.max", "io.latency", "io.prio.class", "hugetlb.2MB.max", "hugetlb.1GB.max", "rdma.max",
    "misc.max"};

// What a delegate of a cgroup is given besides the folder: no settings, but owner and mode.
constexpr std::string_view kDelegated[] = {"cgroup.procs", "tasks", "cgroup.threads",
                                           "cgroup.subtree_control"};

constexpr std::size_t kLimitBytes = 64 << 10;  // of one file
constexpr mode_t kPermissions = 07777;

void ToPerms(struct stat st, const UserIds& ids, image::CgroupPerms& perms) {
  ids.ShowInside(st);
  perms.set_mode(st.st_mode & kPermissions);
  perms.set_uid(st.st_uid);
  perms.set_gid(st.st_gid);
}

Status WriteFile(int folder_fd, const std::string& name, std::string_view text) {
  ASSIGN_OR_RETURN(const UniqueFd file, OpenAt(folder_fd, name, O_WRONLY));
  return Annotate(WriteAll(file.get(), text), name);
}

Status WriteLines(int folder_fd, const std::string& name, std::string_view value) {
  while (!value.empty()) {
    const std::string_view line = text::Trim(text::CutLine(value));
    if (!line.empty()) RETURN_IF_ERROR(WriteFile(folder_fd, name, line));
  }
  return OkStatus();
}

Status WriteSetting(int folder_fd, const std::string& name, std::string_view value) {
  if (name == "devices.list") {
    RETURN_IF_ERROR(WriteFile(folder_fd, "devices.deny", "a"));
    return WriteLines(folder_fd, "devices.allow", value);
  }
  if (name == "memory.oom_control") {
    (void)text::CutWord(value);  // "oom_kill_disable"
    return WriteFile(folder_fd, name, text::CutWord(value));
  }
  if (name == "cgroup.subtree_control") {
    for (const std::string_view controller : text::Words(value)) {
      RETURN_IF_ERROR(WriteFile(folder_fd, name, "+" + std::string(controller)));
    }
    return OkStatus();
  }
  // An empty cpuset cannot be written, and is what a new one has.
  if (text::Trim(value).empty()) return OkStatus();
  return WriteLines(folder_fd, name, value);
}

Status SetPerms(int folder_fd, const std::string& name, const image::CgroupPerms& perms,
                const UserIds& ids) {
  ASSIGN_OR_RETURN(const std::uint32_t user, ids.users.ToOutside(perms.uid()));
  ASSIGN_OR_RETURN(const std::uint32_t group, ids.groups.ToOutside(perms.gid()));
  if (::fchownat(folder_fd, name.c_str(), user, group, AT_EMPTY_PATH) != 0) {
    return SyscallError(errno, "chown " + name);
  }
  const mode_t mode = perms.mode() & 0777;
  const int failed =
      name.empty() ? ::fchmod(folder_fd, mode) : ::fchmodat(folder_fd, name.c_str(), mode, 0);
  return failed == 0 ? OkStatus() : SyscallError(errno, "chmod " + name);
}

}  // namespace

Status ReadCgroupSettings(int folder_fd, const UserIds& ids, image::CgroupDirEntry& entry) {
  struct stat st = {};
  if (::fstat(folder_fd, &st) != 0) {
    return SyscallError(errno, "fstat of a cgroup");
  }
  ToPerms(st, ids, *entry.mutable_dir_perms());
  const auto add = [&](std::string_view name, bool with_value) {
    const std::string file(name);
    if (::fstatat(folder_fd, file.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) return;
    std::string value;
    if (with_value) {
      const Result<std::string> text = ReadFileAt(folder_fd, file, kLimitBytes);
      if (!text.ok()) return;  // not for this cgroup, as cpuset.cpus.partition of some
      value = std::string(text::Trim(*text));
    }
    image::CgroupPropEntry& property = *entry.add_properties();
    property.set_name(file);
    property.set_value(value);
    ToPerms(st, ids, *property.mutable_perms());
  };
  for (const std::string_view name : kSettings) add(name, true);
  for (const std::string_view name : kDelegated) {
    if (name != "cgroup.subtree_control") add(name, false);
  }
  return OkStatus();
}

Status WriteCgroupSettings(int folder_fd, const image::CgroupDirEntry& entry) {
  Status worst;
  for (const std::string_view name : kSettings) {
    for (const image::CgroupPropEntry& property : entry.properties()) {
      if (property.name() != name) continue;
      const Result<std::string> now = ReadFileAt(folder_fd, property.name(), kLimitBytes);
      if (now.ok() && text::Trim(*now) == text::Trim(property.value())) continue;
      const Status status = WriteSetting(folder_fd, property.name(), property.value());
      if (!status.ok()) worst = status;
    }
  }
  return worst;
}

Status WriteCgroupOwner(int folder_fd, const image::CgroupDirEntry& entry, const UserIds& ids) {
  if (!entry.has_dir_perms()) return OkStatus();
  RETURN_IF_ERROR(SetPerms(folder_fd, "", entry.dir_perms(), ids));
  for (const image::CgroupPropEntry& property : entry.properties()) {
    const bool known = std::ranges::find(kDelegated, property.name()) != std::end(kDelegated) ||
                       std::ranges::find(kSettings, property.name()) != std::end(kSettings);
    if (!known || !property.has_perms()) continue;
    const Status status = SetPerms(folder_fd, property.name(), property.perms(), ids);
    if (!status.ok() && ErrnoOf(status) != ENOENT) return status;
  }
  return OkStatus();
}

}  // namespace stasis::engine
