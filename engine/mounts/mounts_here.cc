#include "engine/mounts/mounts_here.h"

#include <fcntl.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/mounts/mount_options.h"
#include "engine/mounts/mount_plan.h"
#include "engine/mounts/outside_mounts.h"

namespace stasis::engine {

namespace {

std::multiset<MountKey> KeysOf(std::span<const Mount> mounts) {
  std::multiset<MountKey> keys;
  for (const Mount& mount : mounts) keys.insert(KeyOf(ToMountEntry(mount)));
  return keys;
}

const Mount* RootOf(std::span<const Mount> mounts) {
  const auto root = std::ranges::find(mounts, "/", &Mount::mountpoint);
  return root == mounts.end() ? nullptr : &*root;
}

bool IsSamePlace(const Mount& a, const Mount& b) {
  return std::tie(a.dev_major, a.dev_minor, a.root) == std::tie(b.dev_major, b.dev_minor, b.root);
}

// Where on this machine what `mount` is a mount of is.
std::optional<std::string> PathHere(const Mount& mount, std::span<const Mount> ours) {
  std::optional<std::string> path;
  std::size_t longest = 0;
  for (const Mount& other : ours) {
    const std::string top = other.root == "/" ? "" : other.root;
    const bool is_below = mount.root == other.root || mount.root.starts_with(top + "/");
    if (std::tie(mount.dev_major, mount.dev_minor) != std::tie(other.dev_major, other.dev_minor) ||
        !is_below || (path && top.size() < longest)) {
      continue;
    }
    longest = top.size();
    const std::string rest = mount.root == "/" ? "" : mount.root.substr(top.size());
    path = other.mountpoint == "/" && !rest.empty() ? rest : other.mountpoint + rest;
  }
  return path;
}

bool SameNamespace(pid_t pid, const std::string& kind) {
  const auto theirs = ReadLinkAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/ns/" + kind);
  const auto ours = ReadLinkAt(AT_FDCWD, "/proc/thread-self/ns/" + kind);
  return theirs.ok() && ours.ok() && *theirs == *ours;
}

// Whether a new mount of this file system of the machine is again the same one: there is one for all, or one for a
// namespace that is ours.
bool IsSameWhenNew(std::string_view type, pid_t pid) {
  if (type == "proc") return SameNamespace(pid, "pid");
  if (type == "sysfs") return SameNamespace(pid, "net");
  if (type == "mqueue") return SameNamespace(pid, "ipc");
  return IsOfMachine(type);
}

class OwnRoot {
 public:
  OwnRoot(std::span<const Mount> mounts, std::span<const Mount> ours, pid_t pid,
          const ExternalMounts& external)
      : mounts_(mounts), ours_(ours), pid_(pid), external_(external) {
    for (const Mount& mount : ours) devices_.emplace(mount.dev_major, mount.dev_minor);
  }

  Result<MountChanges> Compare() {
    changes_.own_root = true;
    std::vector<image::MntEntry> entries;
    for (const Mount& mount : mounts_) {
      entries.push_back(ToMountEntry(mount));
      const auto named = external_.named.find(mount.mountpoint);
      if (named == external_.named.end() || mount.mountpoint == "/") continue;
      // In another mount namespace there may be another one in that place.
      if (!IsSamePlace(*std::ranges::find(mounts_, mount.mountpoint, &Mount::mountpoint), mount))
        continue;
      changes_.keys[mount.id] = outside_[static_cast<std::uint32_t>(mount.id)] = named->second;
    }
    ASSIGN_OR_RETURN(RootPlan plan, PlanRoot(entries, outside_));
    // What is of one that has to be given can perhaps be made when it is.
    while (const Mount* const mount = ToGive(plan)) {
      // No better when it is given, as where its place is not seen.
      if (!Give(*mount)) return plan.refused.front().second;
      ASSIGN_OR_RETURN(plan, PlanRoot(entries, outside_));
    }
    for (const PlannedMount& mount : plan.mounts) {
      if (mount.outside.empty()) changes_.made.insert(static_cast<int>(mount.entry->mnt_id()));
    }
    return changes_;
  }

 private:
  const Mount* Find(std::uint32_t id) const {
    return &*std::ranges::find(mounts_, static_cast<int>(id), &Mount::id);
  }

  // One that cannot be made again, or is of a file system of this machine, which others use as well; or null.
  const Mount* ToGive(const RootPlan& plan) const {
    if (!plan.refused.empty()) return Find(plan.refused.front().first);
    for (const PlannedMount& planned : plan.mounts) {
      if (!planned.is_new) continue;
      const Mount* const mount = Find(planned.entry->mnt_id());
      if (devices_.contains({mount->dev_major, mount->dev_minor}) &&
          !IsSameWhenNew(mount->fs_type, pid_)) {
        return mount;
      }
    }
    return nullptr;
  }

  // False when it is given already.
  bool Give(const Mount& mount) {
    const auto here = external_.automatic ? PathHere(mount, ours_) : std::nullopt;
    const std::string key = here.value_or(mount.mountpoint);
    if (!outside_.try_emplace(static_cast<std::uint32_t>(mount.id), key).second) return false;
    changes_.keys[mount.id] = key;
    if (here) changes_.automatic.insert(mount.id);
    return true;
  }

  const std::span<const Mount> mounts_, ours_;
  const pid_t pid_;
  const ExternalMounts& external_;
  std::set<std::pair<unsigned, unsigned>> devices_;
  MountChanges changes_;
  OutsidePaths outside_;
};

}  // namespace

MountKey KeyOf(const image::MntEntry& mount) {
  return {mount.mountpoint(), mount.root() + (mount.deleted() ? "//deleted" : ""), mount.fstype(),
          mount.fsname()};
}

Result<std::multiset<MountKey>> MountsIn(const std::string& mountinfo) {
  ASSIGN_OR_RETURN(const std::vector<Mount> mounts, ParseMountinfo(mountinfo));
  return KeysOf(mounts);
}

Result<MountChanges> CompareWithHere(std::span<const Mount> mounts, pid_t pid,
                                     const std::vector<std::string>& external) {
  ASSIGN_OR_RETURN(const ExternalMounts named, ParseExternalMounts(external));
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/thread-self/mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<Mount> ours, ParseMountinfo(text));
  const Mount* const root = RootOf(mounts);
  const Mount* const our_root = RootOf(ours);
  if (root != nullptr && our_root != nullptr && !IsSamePlace(*root, *our_root)) {
    const Result<MountChanges> all = OwnRoot(mounts, ours, pid, named).Compare();
    if (all.ok()) return *all;
    MountChanges none;
    none.obstacle = Message(all.status());
    return none;
  }
  std::multiset<MountKey> here = KeysOf(ours);
  // Another /proc, of another pid namespace, is another file system.
  std::set<std::pair<unsigned, unsigned>> devices;
  for (const Mount& mount : ours) devices.emplace(mount.dev_major, mount.dev_minor);
  MountChanges changes;
  std::vector<image::MntEntry> entries;
  for (const Mount& mount : mounts) {
    const auto found = here.find(KeyOf(ToMountEntry(mount)));
    if (found == here.end() || !devices.contains({mount.dev_major, mount.dev_minor})) {
      changes.made.insert(mount.id);
    } else {
      here.erase(found);
    }
    entries.push_back(ToMountEntry(mount));
    entries.back().set_made_inside(changes.made.contains(mount.id));
  }
  return PlanMounts(entries).ok() ? changes : MountChanges();
}

}  // namespace stasis::engine
