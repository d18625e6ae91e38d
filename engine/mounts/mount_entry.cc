#include "engine/mounts/mount_entry.h"

#include <sys/mount.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "engine/proc/text.h"

#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256  // linux/mount.h
#endif

namespace stasis::engine {
namespace {

constexpr std::pair<std::string_view, image::Fstype> kTypes[] = {
    {"proc", image::FSTYPE_PROC},         {"sysfs", image::FSTYPE_SYSFS},
    {"devtmpfs", image::FSTYPE_DEVTMPFS}, {"tmpfs", image::FSTYPE_TMPFS},
    {"devpts", image::FSTYPE_DEVPTS},     {"cgroup", image::FSTYPE_CGROUP},
    {"cgroup2", image::FSTYPE_CGROUP2},   {"mqueue", image::FSTYPE_MQUEUE},
    {"overlay", image::FSTYPE_OVERLAYFS}, {"fuse", image::FSTYPE_FUSE},
    {"debugfs", image::FSTYPE_DEBUGFS},   {"tracefs", image::FSTYPE_TRACEFS},
    {"pstore", image::FSTYPE_PSTORE},     {"securityfs", image::FSTYPE_SECURITYFS},
    {"fusectl", image::FSTYPE_FUSECTL},   {"binfmt_misc", image::FSTYPE_BINFMT_MISC},
    {"autofs", image::FSTYPE_AUTOFS},
};

std::uint32_t FsTypeNumber(std::string_view name) {
  for (const auto& [known, number] : kTypes) {
    if (known == name) return number;
  }
  return image::FSTYPE_AUTO;
}

std::uint32_t MountFlags(std::string_view options) {
  constexpr std::pair<std::string_view, unsigned long> kFlags[] = {
      {"ro", MS_RDONLY},         {"nosuid", MS_NOSUID},           {"nodev", MS_NODEV},
      {"noexec", MS_NOEXEC},     {"noatime", MS_NOATIME},         {"nodiratime", MS_NODIRATIME},
      {"relatime", MS_RELATIME}, {"nosymfollow", MS_NOSYMFOLLOW},
  };
  unsigned long flags = 0;
  while (!options.empty()) {
    const std::string_view option = text::Cut(options, ',');
    for (const auto& [name, flag] : kFlags) {
      if (name == option) flags |= flag;
    }
  }
  return static_cast<std::uint32_t>(flags);
}

// The key under which a mount is given again at restore; empty for one that is made anew. As runc has
// it, which knows these keys at its restore: its bind mounts and each hierarchy of cgroup v1 by their
// places, and what hides a file of /proc by its source.
std::string ExternalKey(const Mount& mount, const OutsideMounts& outside) {
  if (mount.mountpoint == "/") return "";
  if (!outside || mount.fs_type == "cgroup") return mount.mountpoint;
  if (mount.root == "/null" && !mount.mountpoint.starts_with("/dev/")) return "/dev/null";
  return std::ranges::find(*outside, mount.mountpoint) != outside->end() ? mount.mountpoint : "";
}

}  // namespace

image::MntEntry ToMountEntry(const Mount& mount) {
  image::MntEntry entry;
  const std::uint32_t type = FsTypeNumber(mount.fs_type);
  entry.set_fstype(type);
  if (type == image::FSTYPE_AUTO) entry.set_fsname(mount.fs_type);
  entry.set_mnt_id(static_cast<std::uint32_t>(mount.id));
  entry.set_root_dev(mount.dev_major << 20 | mount.dev_minor);
  entry.set_parent_mnt_id(static_cast<std::uint32_t>(mount.parent));
  entry.set_flags(MountFlags(mount.options));
  entry.set_sb_flags(MountFlags(mount.super_options));
  constexpr std::string_view kDeleted =
      "//deleted";  // proc_pid_mountinfo(5); CRIU has a field for it
  std::string_view root = mount.root;
  if (root.ends_with(kDeleted)) {
    root.remove_suffix(kDeleted.size());
    entry.set_deleted(true);
  }
  entry.set_root(std::string(root));
  entry.set_mountpoint(mount.mountpoint);
  entry.set_source(mount.source);
  entry.set_options(mount.super_options);
  for (std::string_view peers : mount.propagation) {
    const std::string_view key = text::Cut(peers, ':');
    if (key == "unbindable") entry.set_unbindable(true);
    const Result<std::uint32_t> group = text::Number<std::uint32_t>(peers);
    if (!group.ok()) continue;
    if (key == "shared") entry.set_shared_id(*group);
    if (key == "master") entry.set_master_id(*group);
  }
  return entry;
}

image::MntEntry ToMountEntry(const Mount& mount, const OutsideMounts& outside,
                             const MountChanges& changes) {
  image::MntEntry entry = ToMountEntry(mount);
  if (changes.made.contains(mount.id)) {
    entry.set_made_inside(true);
    return entry;
  }
  const auto named = changes.keys.find(mount.id);
  std::string key = named != changes.keys.end() ? named->second : ExternalKey(mount, outside);
  if (!key.empty()) entry.set_ext_key(std::move(key));
  if (changes.automatic.contains(mount.id)) entry.set_ext_automatic(true);
  if (changes.access.contains(mount.id)) entry.set_access_changed(true);
  if (changes.sharing.contains(mount.id)) entry.set_sharing_changed(true);
  return entry;
}

std::string FsTypeName(const image::MntEntry& entry) {
  for (const auto& [name, number] : kTypes) {
    if (static_cast<std::uint32_t>(number) == entry.fstype()) return std::string(name);
  }
  return entry.fsname();
}

bool IsShared(const Mount& mount) {
  return std::ranges::any_of(mount.propagation,
                             [](const auto& text) { return text.starts_with("shared:"); });
}

}  // namespace stasis::engine
