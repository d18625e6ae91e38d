#include "engine/mounts/mounts_here.h"

#include <fcntl.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/mounts/mount_plan.h"

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

Result<MountChanges> AllOf(std::span<const Mount> mounts, std::span<const Mount> ours,
                           const ExternalMounts& external) {
  MountChanges changes;
  changes.own_root = true;
  OutsidePaths outside;
  std::vector<image::MntEntry> entries;
  for (const Mount& mount : mounts) {
    entries.push_back(ToMountEntry(mount));
    const auto named = external.named.find(mount.mountpoint);
    if (named == external.named.end() || mount.mountpoint == "/") continue;
    changes.keys[mount.id] = outside[static_cast<std::uint32_t>(mount.id)] = named->second;
  }
  ASSIGN_OR_RETURN(RootPlan plan, PlanRoot(entries, outside));
  // What is of one that has to be given can perhaps be made when it is.
  while (!plan.refused.empty()) {
    const std::uint32_t id = plan.refused.front().first;
    const Mount& mount = *std::ranges::find(mounts, static_cast<int>(id), &Mount::id);
    const auto here = external.automatic ? PathHere(mount, ours) : std::nullopt;
    changes.keys[mount.id] = outside[id] = here.value_or(mount.mountpoint);
    ASSIGN_OR_RETURN(plan, PlanRoot(entries, outside));
  }
  for (const PlannedMount& mount : plan.mounts) {
    if (mount.outside.empty()) changes.made.insert(static_cast<int>(mount.entry->mnt_id()));
  }
  return changes;
}

}  // namespace

MountKey KeyOf(const image::MntEntry& mount) {
  return {mount.mountpoint(), mount.root() + (mount.deleted() ? "//deleted" : ""), mount.fstype(),
          mount.fsname()};
}

Result<std::multiset<MountKey>> MountsIn(const std::string& mountinfo) {
  ASSIGN_OR_RETURN(const std::vector<Mount> mounts, ParseMountinfo(mountinfo));
  return KeysOf(mounts);
}

Result<MountChanges> CompareWithHere(std::span<const Mount> mounts,
                                     const ExternalMounts& external) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/thread-self/mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<Mount> ours, ParseMountinfo(text));
  const Mount* const root = RootOf(mounts);
  const Mount* const our_root = RootOf(ours);
  if (root != nullptr && our_root != nullptr && !IsSamePlace(*root, *our_root)) {
    const Result<MountChanges> all = AllOf(mounts, ours, external);
    return all.ok() ? *all : MountChanges();
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
