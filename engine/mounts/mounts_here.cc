#include "engine/mounts/mounts_here.h"

#include <fcntl.h>

#include "engine/base/io.h"
#include "engine/mounts/mount_plan.h"

namespace stasis::engine {

namespace {

std::multiset<MountKey> KeysOf(std::span<const Mount> mounts) {
  std::multiset<MountKey> keys;
  for (const Mount& mount : mounts) keys.insert(KeyOf(ToMountEntry(mount)));
  return keys;
}

}  // namespace

MountKey KeyOf(const image::MntEntry& mount) {
  return {mount.mountpoint(), mount.root(), mount.fstype(), mount.fsname()};
}

Result<std::multiset<MountKey>> MountsIn(const std::string& mountinfo) {
  ASSIGN_OR_RETURN(const std::vector<Mount> mounts, ParseMountinfo(mountinfo));
  return KeysOf(mounts);
}

Result<MountChanges> CompareWithHere(std::span<const Mount> mounts) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/thread-self/mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<Mount> ours, ParseMountinfo(text));
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
