// Order   what was unmounted; the mounts that were the runtime's are opened while nothing hides them; each new one,
//         filled before another is on it; flags and sharing when all are in their places
// Source  mount(2), openat2(2), fsopen(2), move_mount(2), open_tree(2), mount_setattr(2), seccomp(2);
//         fs/namespace.c; tested on 6.18
// Rule    All calls are the root's: its root directory, namespaces, capabilities and security module judge them. Its
//         seccomp filter does not (process_tree.h), so it is asked first
// Rule    A path is looked up from a descriptor of the mount that it is in, through no link and into no other mount:
//         it cannot lead out of the root, nor to what was mounted over it
// Rule    What is mounted on a shared mount, or taken from it, comes to its peers outside of the container: never
#include "engine/mounts/restore_mounts.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mount.h>

#include <algorithm>
#include <map>
#include <set>

#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mount_plan.h"
#include "engine/mounts/mounter.h"

namespace stasis::engine {
namespace {

using Sharing = PlannedMount::Sharing;

std::uint64_t Propagation(Sharing sharing) {
  switch (sharing) {
    case Sharing::kAsSource:
      return 0;
    case Sharing::kPrivate:
      return MS_PRIVATE;
    case Sharing::kSlave:
      return MS_SLAVE;
    case Sharing::kShared:
      return MS_SHARED;
    case Sharing::kUnbindable:
      return MS_UNBINDABLE;
  }
  return MS_PRIVATE;
}

class MountRestorer {
 public:
  MountRestorer(RestoredProcess& root, std::span<const image::MntEntry> all, const FillTmpfs& fill,
                PendingMounts& later, std::vector<std::string>& notes)
      : mounter_(root), all_(all), fill_(fill), later_(later), notes_(notes) {}

  Status Run() {
    ASSIGN_OR_RETURN(const std::vector<PlannedMount> plan, PlanMounts(all_));
    RETURN_IF_ERROR(mounter_.CheckFilter());
    for (const image::MntEntry& entry : all_) {
      for (const std::string& place : entry.unmounted()) RETURN_IF_ERROR(Unmount(place));
    }
    RETURN_IF_ERROR(OpenGiven(plan));
    for (const PlannedMount& mount : plan) {
      RETURN_IF_ERROR(Annotate(Make(mount), "mount at " + mount.entry->mountpoint()));
    }
    for (const PlannedMount& mount : plan) {
      RETURN_IF_ERROR(Annotate(Finish(mount), "mount at " + mount.entry->mountpoint()));
    }
    RETURN_IF_ERROR(ChangeGiven());
    for (const auto& [id, fd] : open_) mounter_.Close(fd);
    return Silence(later_.autofs, all_);
  }

 private:
  static bool IsChanged(const image::MntEntry& entry) {
    return entry.access_changed() || entry.sharing_changed();
  }

  // What others of a shared mount would lose too stays. So does what the runtime did not mount this time.
  Status Unmount(const std::string& place) {
    ASSIGN_OR_RETURN(const std::vector<Mount> mounts, mounter_.Mounts());
    const auto found = std::ranges::find(mounts, place, &Mount::mountpoint);
    if (place == "/" || found == mounts.end()) return OkStatus();
    const auto parent = std::ranges::find(mounts, found->parent, &Mount::id);
    if (parent == mounts.end() || IsShared(*parent)) {
      notes_.push_back(place + " is mounted again: it was unmounted, and is shared here");
      return OkStatus();
    }
    return mounter_.Unmount(place);
  }

  Status OpenGiven(const std::vector<PlannedMount>& plan) {
    std::set<std::uint32_t> needed;
    for (const PlannedMount& mount : plan) {
      needed.insert(mount.parent);
      if (!mount.is_new) needed.insert(mount.source);
    }
    for (const image::MntEntry& entry : all_) {
      if (entry.made_inside() || !(IsChanged(entry) || needed.contains(entry.mnt_id()))) continue;
      Result<int> fd = OpenOne(entry);
      if (!fd.ok()) return Annotate(fd.status(), "the container's mount at " + entry.mountpoint());
      open_[entry.mnt_id()] = *fd;
    }
    return OkStatus();
  }

  Result<int> OpenOne(const image::MntEntry& entry) {
    ASSIGN_OR_RETURN(const int fd, mounter_.Open(AT_FDCWD, entry.mountpoint(), 0));
    ASSIGN_OR_RETURN(const Mount mount, mounter_.MountOf(fd));
    if (mount.mountpoint != entry.mountpoint()) {
      return FailedPrecondition(
          "it is not there; give the container what it was checkpointed with");
    }
    return fd;
  }

  Status Make(const PlannedMount& mount) {
    const image::MntEntry& entry = *mount.entry;
    int made = -1;
    if (mount.is_new) {
      ASSIGN_OR_RETURN(made, mounter_.NewFileSystem(entry));
    } else {
      ASSIGN_OR_RETURN(const int source,
                       mounter_.OpenIn(open_.at(mount.source), mount.path_in_source));
      ASSIGN_OR_RETURN(made, mounter_.Copy(source));
      mounter_.Close(source);
      RETURN_IF_ERROR(Part(made, mount.sharing));
    }
    open_[entry.mnt_id()] = made;
    if (mount.is_new && FsTypeName(entry) == "tmpfs" && fill_) {
      ASSIGN_OR_RETURN(const UniqueFd folder, mounter_.Take(made));
      RETURN_IF_ERROR(mounter_.Fill(fill_, entry, folder));
    }
    if (mount.is_new && FsTypeName(entry) == "autofs") {
      ASSIGN_OR_RETURN(later_.autofs[entry.root_dev()], mounter_.Take(made));
    }
    ASSIGN_OR_RETURN(const int place, mounter_.MakePlace(open_.at(mount.parent),
                                                         mount.path_in_parent, IsFolder(made)));
    ASSIGN_OR_RETURN(const Mount on, mounter_.MountOf(open_.at(mount.parent)));
    if (IsShared(on)) {
      return FailedPrecondition("it would be on " + on.mountpoint +
                                ", which is shared with outside of the container");
    }
    RETURN_IF_ERROR(mounter_.Attach(made, place));
    mounter_.Close(place);
    return OkStatus();
  }

  // A copy is a peer of what it is a copy of.
  Status Part(int copy, Sharing sharing) {
    if (sharing == Sharing::kAsSource) return OkStatus();
    mount_attr attributes = {};
    attributes.propagation = sharing == Sharing::kSlave ? MS_SLAVE : MS_PRIVATE;
    return mounter_.Set(copy, attributes);
  }

  bool IsFolder(int fd) const { return mounter_.Take(fd).ok(); }

  Status Finish(const PlannedMount& mount) {
    const int fd = open_.at(mount.entry->mnt_id());
    const bool is_read_only = (mount.entry->sb_flags() & MS_RDONLY) != 0;
    if (mount.is_new && is_read_only) RETURN_IF_ERROR(mounter_.MakeReadOnly(fd));
    mount_attr attributes = {};
    attributes.attr_set = AttributesOf(*mount.entry);
    attributes.attr_clr = kAllAttributes;
    attributes.propagation = Propagation(mount.sharing);
    return mounter_.Set(fd, attributes);
  }

  Status ChangeGiven() {
    for (const image::MntEntry& entry : all_) {
      if (!IsChanged(entry) || entry.made_inside()) continue;
      mount_attr attributes = {};
      if (entry.access_changed()) {
        ((entry.flags() & MS_RDONLY) != 0 ? attributes.attr_set : attributes.attr_clr) =
            MOUNT_ATTR_RDONLY;
      }
      if (entry.sharing_changed()) attributes.propagation = MS_SHARED;
      RETURN_IF_ERROR(
          Annotate(mounter_.Set(open_.at(entry.mnt_id()), attributes), entry.mountpoint()));
    }
    return OkStatus();
  }

  Mounter mounter_;
  const std::span<const image::MntEntry> all_;
  const FillTmpfs& fill_;
  PendingMounts& later_;
  std::vector<std::string>& notes_;
  std::map<std::uint32_t, int> open_;  // the root's descriptors, by the ids of the mounts
};

}  // namespace

Status RestoreMounts(RestoredProcess& root, std::span<const image::MntEntry> all,
                     const FillTmpfs& fill, PendingMounts& later, std::vector<std::string>& notes) {
  const bool any = std::ranges::any_of(all, [](const image::MntEntry& entry) {
    return entry.made_inside() || entry.access_changed() || entry.sharing_changed() ||
           entry.unmounted_size() > 0;
  });
  if (!any) return OkStatus();
  return Annotate(MountRestorer(root, all, fill, later, notes).Run(),
                  "the mounts that processes of it had made");
}

}  // namespace stasis::engine
