// Order   the root, on its own directory; each other mount, private, in its place; flags; who shares with whom; the
//         root becomes that of the namespace, and the old one goes
// Source  pivot_root(2), mount_namespaces(7), move_mount(2); do_set_group() in fs/namespace.c; tested on 6.18
// Rule    While no mount of the tree is shared nothing comes to another by itself: each one that an image has is made
// Rule    A mount joins the group of another (MOVE_MOUNT_SET_GROUP, from Linux 5.15 on) when it is in none, and of
//         the same file system, of no more of it. One that is a slave and is made shared begins a group of its own
// Rule    pivot_root(2) wants a root that is a mount, on a mount that is not shared
#include "engine/mounts/restore_root.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mount.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mount_options.h"
#include "engine/mounts/mount_plan.h"
#include "engine/mounts/mounter.h"

namespace stasis::engine {
namespace {

Status Propagate(Mounter& mounter, int fd, std::uint64_t type) {
  mount_attr attributes = {};
  attributes.propagation = type;
  return mounter.Set(fd, attributes);
}

Status NotGiven(const image::MntEntry& entry, const std::string& why) {
  const std::string& key = entry.ext_key().empty() ? entry.mountpoint() : entry.ext_key();
  return FailedPrecondition("its mount at " + entry.mountpoint() + " (" + entry.source() + ") " +
                            why + "; say what is to be there: --external 'mnt[" + key + "]:PATH'");
}

// Who shares what is mounted with whom, once all is in its place.
class Groups {
 public:
  Groups(Mounter& mounter, std::span<const image::MntEntry> all,
         const std::map<std::uint32_t, int>& open)
      : mounter_(mounter), all_(all), open_(open) {}

  Status Run() {
    for (bool any = true; any;) {
      any = false;
      for (const image::MntEntry& entry : all_) {
        if (done_.contains(entry.mnt_id()) || !IsReady(entry)) continue;
        RETURN_IF_ERROR(Annotate(Share(entry), "the sharing of " + entry.mountpoint()));
        done_[entry.mnt_id()] = true;
        any = true;
      }
    }
    if (done_.size() == all_.size()) return OkStatus();
    return InvalidArgument("groups of shared mounts that depend on each other");
  }

 private:
  // The first of a group, and of those that see what it mounts, is the one that is of the largest part of its file
  // system: the others can join it.
  const image::MntEntry* Widest(std::uint32_t group) const {
    const image::MntEntry* widest = nullptr;
    for (const image::MntEntry& entry : all_) {
      if (group == 0 || entry.shared_id() != group) continue;
      if (widest == nullptr || entry.root().size() < widest->root().size()) widest = &entry;
    }
    return widest;
  }

  // One of those that have the same master, where that is outside: they were made slaves together.
  const image::MntEntry* Master(const image::MntEntry& entry) const {
    return Widest(entry.master_id());
  }

  bool IsReady(const image::MntEntry& entry) const {
    const image::MntEntry* first = Widest(entry.shared_id());
    const image::MntEntry* before = first != nullptr && first != &entry ? first : Master(entry);
    return before == nullptr || done_.contains(before->mnt_id());
  }

  Status Share(const image::MntEntry& entry) {
    const int fd = open_.at(entry.mnt_id());
    if (entry.unbindable()) return Propagate(mounter_, fd, MS_UNBINDABLE);
    const image::MntEntry* first = Widest(entry.shared_id());
    if (first != nullptr && first != &entry) return Join(fd, *first);
    if (const image::MntEntry* master = Master(entry)) {
      RETURN_IF_ERROR(Join(fd, *master));
      RETURN_IF_ERROR(Propagate(mounter_, fd, MS_SLAVE));
    }
    return first != nullptr ? Propagate(mounter_, fd, MS_SHARED) : OkStatus();
  }

  Status Join(int fd, const image::MntEntry& other) {
    RETURN_IF_ERROR(Propagate(mounter_, fd, MS_PRIVATE));
    return mounter_.ShareWith(fd, open_.at(other.mnt_id()));
  }

  Mounter& mounter_;
  const std::span<const image::MntEntry> all_;
  const std::map<std::uint32_t, int>& open_;
  std::map<std::uint32_t, bool> done_;
};

class RootMaker {
 public:
  RootMaker(RestoredProcess& root, std::span<const image::MntEntry> all, const FillTmpfs& fill,
            std::vector<PendingReadOnly>& read_only)
      : mounter_(root), all_(all), fill_(fill), read_only_(read_only) {}

  Status Run(const std::string& directory, const OutsidePaths& outside) {
    ASSIGN_OR_RETURN(const RootPlan plan, PlanRoot(all_, outside));
    if (!plan.refused.empty()) return Refused(plan);
    RETURN_IF_ERROR(mounter_.CheckFilter());
    ASSIGN_OR_RETURN(old_root_, mounter_.OpenOutside("/"));
    for (const PlannedMount& mount : plan.mounts) {
      if (!mount.is_new && mount.outside.empty()) sources_.insert(mount.source);
      if (!mount.outside.empty()) given_.insert(mount.entry->mnt_id());
    }
    RETURN_IF_ERROR(Annotate(MakeRoot(plan.root, directory), "the root " + directory));
    for (const PlannedMount& mount : plan.mounts) {
      RETURN_IF_ERROR(Annotate(Make(mount), "mount at " + mount.entry->mountpoint()));
    }
    for (const PlannedMount& mount : plan.mounts) {
      RETURN_IF_ERROR(
          Annotate(SetFlags(*mount.entry, mount.is_new), "mount at " + mount.entry->mountpoint()));
    }
    RETURN_IF_ERROR(SetFlags(*Find(plan.root), false));
    RETURN_IF_ERROR(mounter_.PivotTo(open_.at(plan.root), bare_.size()));
    RETURN_IF_ERROR(Groups(mounter_, all_, open_).Run());
    for (const auto& [id, fd] : bare_) mounter_.Close(fd);
    for (const auto& [id, fd] : open_) {
      if (std::ranges::find(read_only_, fd, &PendingReadOnly::mount) == read_only_.end()) {
        mounter_.Close(fd);
      }
    }
    return OkStatus();
  }

 private:
  const image::MntEntry* Find(std::uint32_t id) const {
    return &*std::ranges::find(all_, id, &image::MntEntry::mnt_id);
  }

  Status Refused(const RootPlan& plan) const {
    const auto& [id, why] = plan.refused.front();
    return NotGiven(*Find(id), "cannot be made again: " + std::string(Message(why)));
  }

  Status MakeRoot(std::uint32_t id, const std::string& directory) {
    ASSIGN_OR_RETURN(const int place, mounter_.OpenOutside(directory));
    ASSIGN_OR_RETURN(const int made, mounter_.Copy(place));
    if (!mounter_.Take(made).ok()) return FailedPrecondition("is no directory");
    RETURN_IF_ERROR(Part(*Find(id), made));
    RETURN_IF_ERROR(mounter_.Attach(made, place));
    mounter_.Close(place);
    open_[id] = made;
    return KeepBare(id);
  }

  Status Make(const PlannedMount& mount) {
    const image::MntEntry& entry = *mount.entry;
    int made = -1;
    if (mount.is_new) {
      ASSIGN_OR_RETURN(made, mounter_.NewFileSystem(entry));
    } else {
      ASSIGN_OR_RETURN(const int source, OpenSource(mount));
      ASSIGN_OR_RETURN(made, mounter_.Copy(source));
      mounter_.Close(source);
      if (mount.is_removed) {
        RETURN_IF_ERROR(mounter_.RemoveFolder(bare_.at(mount.source), mount.path_in_source));
      }
      RETURN_IF_ERROR(mount.outside.empty() ? Propagate(mounter_, made, MS_PRIVATE)
                                            : Part(entry, made));
    }
    open_[entry.mnt_id()] = made;
    const Result<UniqueFd> folder = mounter_.Take(made);
    if (mount.is_new && FsTypeName(entry) == "tmpfs" && fill_ && folder.ok()) {
      RETURN_IF_ERROR(fill_(entry.root_dev(), folder->get()));
    }
    // Nothing is made on what is the machine's.
    const int parent = open_.at(mount.parent);
    ASSIGN_OR_RETURN(const int place,
                     given_.contains(mount.parent)
                         ? mounter_.OpenIn(parent, mount.path_in_parent)
                         : mounter_.MakePlace(parent, mount.path_in_parent, folder.ok()));
    RETURN_IF_ERROR(mounter_.Attach(made, place));
    mounter_.Close(place);
    return KeepBare(entry.mnt_id());
  }

  Result<int> OpenSource(const PlannedMount& mount) {
    if (!mount.outside.empty()) return mounter_.OpenOutside(mount.outside);
    const int from = bare_.at(mount.source);
    if (!mount.is_removed) return mounter_.OpenIn(from, mount.path_in_source);
    ASSIGN_OR_RETURN(const int place,
                     mounter_.OpenIn(open_.at(mount.parent), mount.path_in_parent));
    const bool was_folder = mounter_.Take(place).ok();
    mounter_.Close(place);
    if (!was_folder) return FailedPrecondition("the file that was mounted there had been removed");
    RETURN_IF_ERROR(mounter_.MakeFolder(from, mount.path_in_source));
    return mounter_.OpenIn(from, mount.path_in_source);
  }

  // What others are made of, with nothing mounted on it: on the old root, with which it goes.
  Status KeepBare(std::uint32_t id) {
    if (!sources_.contains(id)) return OkStatus();
    ASSIGN_OR_RETURN(const int bare, mounter_.Copy(open_.at(id)));
    RETURN_IF_ERROR(Propagate(mounter_, bare, MS_PRIVATE));
    RETURN_IF_ERROR(mounter_.Attach(bare, old_root_));
    bare_[id] = bare;
    return OkStatus();
  }

  // A copy is a peer of what it is a copy of. One that saw what is mounted outside does so again.
  Status Part(const image::MntEntry& entry, int copy) {
    const bool is_slave =
        entry.has_master_id() &&
        std::ranges::find(all_, entry.master_id(), &image::MntEntry::shared_id) == all_.end();
    return Propagate(mounter_, copy, is_slave ? MS_SLAVE : MS_PRIVATE);
  }

  Status SetFlags(const image::MntEntry& entry, bool is_new) {
    const int fd = open_.at(entry.mnt_id());
    const PendingReadOnly later = {.mount = fd,
                                   .this_mount = (entry.flags() & MS_RDONLY) != 0,
                                   .whole_file_system = is_new &&
                                                        (entry.sb_flags() & MS_RDONLY) != 0 &&
                                                        !IsOfMachine(FsTypeName(entry))};
    if (later.this_mount || later.whole_file_system) read_only_.push_back(later);
    mount_attr attributes = {};
    attributes.attr_set = AttributesOf(entry) & ~std::uint64_t{MOUNT_ATTR_RDONLY};
    attributes.attr_clr = kAllAttributes;
    return mounter_.Set(fd, attributes);
  }

  Mounter mounter_;
  const std::span<const image::MntEntry> all_;
  const FillTmpfs& fill_;
  std::vector<PendingReadOnly>& read_only_;
  int old_root_ = -1;
  std::map<std::uint32_t, int> open_;  // the root's descriptors, by the ids of the mounts
  std::map<std::uint32_t, int> bare_;  // the same, of what is in sources_
  std::set<std::uint32_t> sources_, given_;
};

}  // namespace

Status RestoreRootMounts(RestoredProcess& root, std::span<const image::MntEntry> all,
                         const std::string& directory, const ExternalMounts& external,
                         const FillTmpfs& fill, std::vector<PendingReadOnly>& read_only) {
  OutsidePaths outside;
  for (const image::MntEntry& entry : all) {
    if (entry.ext_key().empty() || entry.made_inside() || entry.mountpoint() == "/") continue;
    const auto named = external.named.find(entry.ext_key());
    if (named != external.named.end()) {
      outside[entry.mnt_id()] = named->second;
    } else if (external.automatic && entry.ext_automatic()) {
      outside[entry.mnt_id()] = entry.ext_key();
    } else {
      return NotGiven(entry, "was given from outside");
    }
  }
  return Annotate(RootMaker(root, all, fill, read_only).Run(directory, outside),
                  "the mount namespace that the tree had");
}

Status MakeReadOnly(RestoredProcess& root, std::span<const PendingReadOnly> mounts) {
  Mounter mounter(root);
  for (const PendingReadOnly& mount : mounts) {
    mount_attr attributes = {};
    attributes.attr_set = MOUNT_ATTR_RDONLY;
    if (mount.this_mount) RETURN_IF_ERROR(mounter.Set(mount.mount, attributes));
    if (mount.whole_file_system) RETURN_IF_ERROR(mounter.MakeReadOnly(mount.mount));
    mounter.Close(mount.mount);
  }
  return OkStatus();
}

}  // namespace stasis::engine
