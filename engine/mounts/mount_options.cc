// Source  shmem_show_options() in mm/shmem.c, proc_show_options() in fs/proc/root.c, devpts_show_options() in
//         fs/devpts/inode.c, autofs_show_options() in fs/autofs/inode.c; tested on 6.18
#include "engine/mounts/mount_options.h"

#include <algorithm>
#include <string_view>

#include "engine/mounts/mount_entry.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

struct KnownOptions {
  std::string_view type;
  std::vector<std::string_view> with_value, flags;
};
const KnownOptions kOptions[] = {
    {"tmpfs",
     {"size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol"},
     {"inode32", "inode64", "noswap"}},
    {"proc", {"hidepid", "gid", "subset"}, {}},
    {"devpts", {"gid", "uid", "mode", "ptmxmode", "max"}, {}},
    {"sysfs", {}, {}},
    {"mqueue", {}, {}},
    {"autofs",
     {"minproto", "maxproto", "uid", "gid"},
     {"direct", "indirect", "offset", "strictexpire", "ignore"}},
    // In the first cgroup namespace these are set by whoever mounts it: cgroup_get_tree() in kernel/cgroup/cgroup.c.
    {"cgroup2",
     {},
     {"nsdelegate", "favordynmods", "memory_localevents", "memory_recursiveprot",
      "memory_hugetlb_accounting", "pids_localevents"}},
};
// Their options stay as they are on the machine.
constexpr std::string_view kOfMachine[] = {"devtmpfs", "debugfs",     "tracefs", "securityfs",
                                           "pstore",   "binfmt_misc", "fusectl"};
// What a security module of the host's shows: labels are those of the live container.
constexpr std::string_view kIgnored[] = {"rw",        "ro",          "seclabel",  "context",
                                         "fscontext", "rootcontext", "defcontext"};

// What is set once there is a daemon (autofs.cc).
constexpr std::string_view kOfDaemon[] = {"fd", "pgrp", "timeout", "pipe_ino"};

// A hierarchy of version 1 is known by its name or controllers: cgroup1_parse_param() in kernel/cgroup/cgroup-v1.c.
// What is to be run when a cgroup is empty is the machine's to say.
std::vector<MountOption> HierarchyOf(const image::MntEntry& entry) {
  constexpr std::string_view kNoControllers[] = {"xattr", "noprefix", "clone_children",
                                                 "cpuset_v2_mode", "favordynmods"};
  std::vector<MountOption> options;
  bool any = false;
  for (std::string_view rest = entry.options(); !rest.empty();) {
    std::string_view value = text::Cut(rest, ',');
    const std::string_view key = text::Cut(value, '=');
    const bool is_ignored = std::ranges::find(kIgnored, key) != std::end(kIgnored);
    if (is_ignored || key == "release_agent") continue;
    if (key == "name") {
      options.emplace_back(key, value);
      continue;
    }
    any = any || std::ranges::find(kNoControllers, key) == std::end(kNoControllers);
    options.emplace_back(key, std::nullopt);
  }
  if (!any) options.emplace_back("none", std::nullopt);
  return options;
}

}  // namespace

bool IsOfMachine(std::string_view type) {
  return type == "cgroup" || type == "cgroup2" ||
         std::ranges::find(kOfMachine, type) != std::end(kOfMachine);
}

void ShowOptionsInside(const UserIds& ids, image::MntEntry& entry) {
  if (ids.are_ours()) return;
  std::string options;
  for (std::string_view rest = entry.options(); !rest.empty();) {
    std::string_view value = text::Cut(rest, ',');
    const std::string option(value);
    const std::string_view key = text::Cut(value, '=');
    const Result<std::uint32_t> id = text::Number<std::uint32_t>(value);
    const bool is_id = (key == "uid" || key == "gid") && id.ok();
    const IdMap& map = key == "uid" ? ids.users : ids.groups;
    options += options.empty() ? "" : ",";
    options += is_id ? std::string(key) + "=" + std::to_string(map.ToInside(*id)) : option;
  }
  entry.set_options(options);
}

Result<std::vector<MountOption>> OptionsOf(const image::MntEntry& entry) {
  const std::string type = FsTypeName(entry);
  if (std::ranges::find(kOfMachine, type) != std::end(kOfMachine))
    return std::vector<MountOption>();
  if (type == "cgroup") return HierarchyOf(entry);
  const auto known = std::ranges::find(kOptions, type, &KnownOptions::type);
  if (known == std::end(kOptions)) return Unimplemented("a file system that is not known");
  std::vector<MountOption> options;
  for (std::string_view rest = entry.options(); !rest.empty();) {
    std::string_view value = text::Cut(rest, ',');
    const std::string_view key = text::Cut(value, '=');
    const auto is_in = [&](const auto& list) {
      return std::ranges::find(list, key) != std::end(list);
    };
    if (type == "autofs" && std::ranges::find(kOfDaemon, key) != std::end(kOfDaemon)) continue;
    // Each mount of devpts is one, from Linux 4.7 on; CRIU writes it down.
    if (is_in(kIgnored) || (type == "devpts" && key == "newinstance")) continue;
    if (is_in(known->flags)) {
      options.emplace_back(key, std::nullopt);
    } else if (is_in(known->with_value)) {
      options.emplace_back(key, value);
    } else {
      return Unimplemented("it has the option " + std::string(key));
    }
  }
  return options;
}

}  // namespace stasis::engine
