// Order   the root, on its own directory; each other mount, private, in its place; flags; the root becomes that of
//         the namespace, and the old one goes; who shares with whom. Mounts of other namespaces are made in between, in
//         no place yet: then each of these begins as a copy, in which they get their places and the rest goes
// Source  pivot_root(2), mount_namespaces(7), move_mount(2), unshare(2); do_set_group() in fs/namespace.c; tested on
//         6.18
// Rule    While no mount of the tree is shared nothing comes to another by itself: each one that an image has is made
// Rule    A mount joins the group of another (MOVE_MOUNT_SET_GROUP, from Linux 5.15 on) when it is in none, and of
//         the same file system, of no more of it. One that is a slave and is made shared begins a group of its own
// Rule    pivot_root(2) wants a root that is a mount, on a mount that is not shared
// Rule    A mount is put in its place, copied and changed by those in its mount namespace alone; one that has no place
//         yet can be put into any, and a group joined across them (check_mnt() in fs/namespace.c)
#include "engine/mounts/restore_root.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "engine/base/io.h"
#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mount_options.h"
#include "engine/mounts/mount_plan.h"
#include "engine/mounts/mounter.h"
#include "engine/tasks/process_tree.h"

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

// A checkpoint of CRIU's tells nothing of it, and what has a place that is a folder is one.
unsigned RemovedMode(const image::MntEntry& entry) {
  return entry.has_removed_mode() ? entry.removed_mode() : S_IFDIR | 0755;
}

// Who shares what is mounted with whom, once all is in its place.
class Groups {
 public:
  /// `enter`: to be called before a mount is changed.
  Groups(Mounter& mounter, std::span<const image::MntEntry> all,
         const std::map<std::uint32_t, int>& open,
         std::function<Status(const image::MntEntry&)> enter)
      : mounter_(mounter), all_(all), open_(open), enter_(std::move(enter)) {}

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
    RETURN_IF_ERROR(enter_(entry));
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
  const std::function<Status(const image::MntEntry&)> enter_;
  std::map<std::uint32_t, bool> done_;
};

std::vector<image::MntEntry> Joined(std::span<const NamespaceMounts> namespaces) {
  std::vector<image::MntEntry> all;
  for (const NamespaceMounts& one : namespaces) {
    all.insert(all.end(), one.mounts.begin(), one.mounts.end());
  }
  return all;
}

class RootMaker {
 public:
  RootMaker(RestoredProcess& root, std::span<const NamespaceMounts> namespaces,
            const FillTmpfs& fill, PendingMounts& later, MountNamespaces& made)
      : root_(root),
        mounter_(root),
        namespaces_(namespaces),
        all_(Joined(namespaces)),
        fill_(fill),
        later_(later),
        made_(made) {
    for (const NamespaceMounts& one : namespaces.subspan(1)) {
      for (const image::MntEntry& entry : one.mounts) other_[entry.mnt_id()] = one.number;
    }
  }

  std::span<const image::MntEntry> all() const { return all_; }

  Status Run(const std::string& directory, const OutsidePaths& outside) {
    ASSIGN_OR_RETURN(const RootPlan plan, PlanRoot(all_, outside));
    if (!plan.refused.empty()) return Refused(plan);
    RETURN_IF_ERROR(mounter_.CheckFilter());
    ASSIGN_OR_RETURN(old_root_, mounter_.OpenOutside("/"));
    outside_ = &outside;
    for (const PlannedMount& mount : plan.mounts) {
      if (mount.is_terminal) continue;
      if (!mount.is_new && mount.outside.empty() && !IsCopyOfGiven(mount, outside)) {
        sources_.insert(mount.source);
      }
      if (!mount.outside.empty()) given_.insert(mount.entry->mnt_id());
    }
    RETURN_IF_ERROR(Annotate(MakeRoot(plan.root, directory), "the root " + directory));
    for (const PlannedMount& mount : plan.mounts) {
      RETURN_IF_ERROR(Annotate(mount.is_terminal  ? Postpone(mount)
                               : IsOfOther(mount) ? MakeOfOther(mount)
                                                  : Make(mount),
                               "mount at " + mount.entry->mountpoint()));
    }
    std::vector<MountNamespaces> others;
    ASSIGN_OR_RETURN(const UniqueFd first, OpenAt(root_.proc.get(), "ns/mnt", O_RDONLY));
    for (const NamespaceMounts& one : namespaces_.subspan(1)) {
      RETURN_IF_ERROR(MakeOther(one, plan));
      RETURN_IF_ERROR(others.emplace_back().Add(root_, one));
      RETURN_IF_ERROR(GoBackTo(first.get()));
    }
    for (const PlannedMount& mount : plan.mounts) {
      if (IsOfOther(mount) || mount.is_terminal) continue;
      RETURN_IF_ERROR(
          Annotate(SetFlags(*mount.entry, mount.is_new), "mount at " + mount.entry->mountpoint()));
    }
    RETURN_IF_ERROR(SetFlags(*Find(plan.root), false));
    RETURN_IF_ERROR(Remove());
    RETURN_IF_ERROR(mounter_.PivotTo(open_.at(plan.root), bare_.size()));
    RETURN_IF_ERROR(made_.Add(root_, namespaces_.front()));
    for (MountNamespaces& other : others) made_.Take(std::move(other));
    RETURN_IF_ERROR(Groups(mounter_, InPlace(), open_, [this](const image::MntEntry& entry) {
                      return made_.Enter(root_, NumberOf(entry.mnt_id()));
                    }).Run());
    RETURN_IF_ERROR(made_.Enter(root_, namespaces_.front().number));
    for (const auto& [id, fd] : bare_) mounter_.Close(fd);
    for (const auto& [id, fd] : open_) {
      if (!IsPending(fd)) mounter_.Close(fd);
    }
    return Silence(later_.autofs, all_);
  }

 private:
  const image::MntEntry* Find(std::uint32_t id) const {
    return &*std::ranges::find(all_, id, &image::MntEntry::mnt_id);
  }

  std::uint32_t NumberOf(std::uint32_t mnt_id) const {
    const auto found = other_.find(mnt_id);
    return found == other_.end() ? namespaces_.front().number : found->second;
  }

  bool IsPending(int fd) const {
    return std::ranges::find(later_.read_only, fd, &PendingReadOnly::mount) !=
               later_.read_only.end() ||
           std::ranges::find(later_.terminals, fd, &PendingTerminal::devpts) !=
               later_.terminals.end();
  }

  // All that are there by now.
  std::vector<image::MntEntry> InPlace() const {
    std::vector<image::MntEntry> entries;
    for (const image::MntEntry& entry : all_) {
      if (open_.contains(entry.mnt_id())) entries.push_back(entry);
    }
    return entries;
  }

  // Of the whole of one that is the machine's, which may be a file.
  static bool IsCopyOfGiven(const PlannedMount& mount, const OutsidePaths& outside) {
    return mount.path_in_source.empty() && !mount.is_removed && outside.contains(mount.source);
  }

  // Of a mount namespace that is not that of the root.
  bool IsOfOther(const PlannedMount& mount) const { return other_.contains(mount.entry->mnt_id()); }

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

  // Takes `made` for `mount`, with what is in it where that is ours to put there. Whether it is a folder.
  Result<bool> Keep(const PlannedMount& mount, int made) {
    const image::MntEntry& entry = *mount.entry;
    open_[entry.mnt_id()] = made;
    Result<UniqueFd> folder = mounter_.Take(made);
    if (mount.is_new && FsTypeName(entry) == "tmpfs" && fill_ && folder.ok()) {
      RETURN_IF_ERROR(mounter_.Fill(fill_, entry, *folder));
    }
    const bool is_folder = folder.ok();
    if (mount.is_new && FsTypeName(entry) == "autofs" && is_folder) {
      later_.autofs[entry.root_dev()] = *std::move(folder);
    }
    return is_folder;
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
      RETURN_IF_ERROR(mount.outside.empty() ? Propagate(mounter_, made, MS_PRIVATE)
                                            : Part(entry, made));
    }
    ASSIGN_OR_RETURN(const bool is_folder, Keep(mount, made));
    ASSIGN_OR_RETURN(const int place, PlaceOf(mount, is_folder));
    RETURN_IF_ERROR(mounter_.Attach(made, place));
    mounter_.Close(place);
    return KeepBare(entry.mnt_id());
  }

  // Nothing is made on what is the machine's.
  Result<int> PlaceOf(const PlannedMount& mount, bool is_folder) {
    const int parent = open_.at(mount.parent);
    return given_.contains(mount.parent)
               ? mounter_.OpenIn(parent, mount.path_in_parent)
               : mounter_.MakePlace(parent, mount.path_in_parent, is_folder);
  }

  // Until the terminal is there. Its place is opened now, while nothing hides it.
  Status Postpone(const PlannedMount& mount) {
    ASSIGN_OR_RETURN(const int place, PlaceOf(mount, false));
    later_.terminals.push_back({.entry = *mount.entry,
                                .sharing = mount.sharing,
                                .devpts = open_.at(mount.source),
                                .place = place,
                                .name = mount.path_in_source,
                                .number = NumberOf(mount.entry->mnt_id()),
                                .of_devpts = NumberOf(mount.source)});
    return OkStatus();
  }

  // In no place yet.
  Status MakeOfOther(const PlannedMount& mount) {
    const image::MntEntry& entry = *mount.entry;
    int source = -1;
    if (mount.is_new) {
      ASSIGN_OR_RETURN(source, mounter_.NewFileSystem(entry));
      RETURN_IF_ERROR(mounter_.Attach(source, old_root_));
      bare_[entry.mnt_id()] = source;
    } else {
      ASSIGN_OR_RETURN(source, OpenSource(mount));
      if (sources_.contains(entry.mnt_id())) RETURN_IF_ERROR(KeepBareOf(entry.mnt_id(), source));
    }
    ASSIGN_OR_RETURN(const int made, mounter_.Copy(source));
    if (!mount.is_new) mounter_.Close(source);
    RETURN_IF_ERROR(mount.outside.empty() ? Propagate(mounter_, made, MS_PRIVATE)
                                          : Part(entry, made));
    ASSIGN_OR_RETURN(const bool is_folder, Keep(mount, made));
    if (mount.is_root || given_.contains(mount.parent)) return OkStatus();
    ASSIGN_OR_RETURN(const int place,
                     mounter_.MakePlace(open_.at(mount.parent), mount.path_in_parent, is_folder));
    mounter_.Close(place);
    return OkStatus();
  }

  // The root enters a new copy of its mount namespace, in which nothing is left but what `one` has.
  Status MakeOther(const NamespaceMounts& one, const RootPlan& plan) {
    RETURN_IF_ERROR(root_.remote->Call("unshare mnt", SYS_unshare, CLONE_NEWNS).status());
    const PlannedMount* top = nullptr;
    for (const PlannedMount& mount : plan.mounts) {
      if (NumberOf(mount.entry->mnt_id()) != one.number || mount.is_terminal) continue;
      const std::string& place = mount.entry->mountpoint();
      if (mount.is_root) top = &mount;
      RETURN_IF_ERROR(Annotate(PutInPlace(mount), "mount at " + place));
      RETURN_IF_ERROR(Annotate(SetFlags(*mount.entry, mount.is_new), "mount at " + place));
    }
    if (top == nullptr) return Unimplemented("a mount namespace without a root");
    return mounter_.PivotTo(open_.at(top->entry->mnt_id()), bare_.size());
  }

  Status PutInPlace(const PlannedMount& mount) {
    Result<int> place = mount.is_root
                            ? mounter_.OpenOutside("/")
                            : mounter_.OpenIn(open_.at(mount.parent), mount.path_in_parent);
    RETURN_IF_ERROR(place.status());
    RETURN_IF_ERROR(mounter_.Attach(open_.at(mount.entry->mnt_id()), *place));
    mounter_.Close(*place);
    return OkStatus();
  }

  // Rule: who enters a mount namespace has the topmost mount on its root as root (mntns_install()).
  Status GoBackTo(int first) {
    ASSIGN_OR_RETURN(const int fd, SendInto(root_, first));
    RemoteSyscalls& remote = *root_.remote;
    RETURN_IF_ERROR(remote.Call("setns mnt", SYS_setns, fd, CLONE_NEWNS).status());
    mounter_.Close(fd);
    RETURN_IF_ERROR(remote.Call("fchdir", SYS_fchdir, old_root_).status());
    remote.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t here, remote.Put(std::string_view(".")));
    return remote.Call("chroot", SYS_chroot, here).status();
  }

  Result<int> OpenSource(const PlannedMount& mount) {
    if (!mount.outside.empty()) return mounter_.OpenOutside(mount.outside);
    if (IsCopyOfGiven(mount, *outside_)) return mounter_.OpenOutside(outside_->at(mount.source));
    const int from = bare_.at(mount.source);
    if (!mount.is_removed) return mounter_.OpenIn(from, mount.path_in_source);
    if (removed_.contains({mount.source, mount.path_in_source})) {
      return mounter_.OpenIn(from, mount.path_in_source);
    }
    ASSIGN_OR_RETURN(const int place,
                     mounter_.OpenIn(open_.at(mount.parent), mount.path_in_parent));
    const bool was_folder = mounter_.Take(place).ok();
    mounter_.Close(place);
    const unsigned mode = RemovedMode(*mount.entry);
    if (!was_folder && !mount.entry->has_removed_mode()) {
      return FailedPrecondition("the file that was mounted there had been removed");
    }
    RETURN_IF_ERROR(mounter_.MakeEmpty(from, mount.path_in_source, mode));
    removed_[{mount.source, mount.path_in_source}] = mode;
    return mounter_.OpenIn(from, mount.path_in_source);
  }

  // What others are made of, with nothing mounted on it: on the old root, with which it goes.
  Status KeepBare(std::uint32_t id) {
    return sources_.contains(id) ? KeepBareOf(id, open_.at(id)) : OkStatus();
  }

  Status KeepBareOf(std::uint32_t id, int source) {
    ASSIGN_OR_RETURN(const int bare, mounter_.Copy(source));
    RETURN_IF_ERROR(Propagate(mounter_, bare, MS_PRIVATE));
    RETURN_IF_ERROR(mounter_.Attach(bare, old_root_));
    bare_[id] = bare;
    return OkStatus();
  }

  // Rule: what was removed cannot be put into a place any more (get_mountpoint() in fs/namespace.c).
  Status Remove() {
    for (const auto& [from, mode] : removed_) {
      RETURN_IF_ERROR(mounter_.RemoveEmpty(bare_.at(from.first), from.second, mode));
    }
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
                                                        !IsOfMachine(FsTypeName(entry)),
                                   .number = NumberOf(entry.mnt_id())};
    if (later.this_mount || later.whole_file_system) later_.read_only.push_back(later);
    mount_attr attributes = {};
    attributes.attr_set = AttributesOf(entry) & ~std::uint64_t{MOUNT_ATTR_RDONLY};
    attributes.attr_clr = kAllAttributes;
    return mounter_.Set(fd, attributes);
  }

  RestoredProcess& root_;
  Mounter mounter_;
  const std::span<const NamespaceMounts> namespaces_;
  const std::vector<image::MntEntry> all_;
  std::map<std::uint32_t, std::uint32_t>
      other_;  // numbers of other namespaces, by the ids of their mounts
  const FillTmpfs& fill_;
  PendingMounts& later_;
  MountNamespaces& made_;
  int old_root_ = -1;
  const OutsidePaths* outside_ = nullptr;
  std::map<std::uint32_t, int> open_;  // the root's descriptors, by the ids of the mounts
  std::map<std::uint32_t, int> bare_;  // the same, of what is in sources_
  std::set<std::uint32_t> sources_, given_;
  // Modes of what is to be removed once it is mounted, by the mount that it is in and the path there.
  std::map<std::pair<std::uint32_t, std::string>, unsigned> removed_;
};

}  // namespace

Status RestoreRootMounts(RestoredProcess& root, std::span<const NamespaceMounts> all,
                         const std::string& directory, const ExternalMounts& external,
                         const FillTmpfs& fill, PendingMounts& later, MountNamespaces& made) {
  OutsidePaths outside;
  RootMaker maker(root, all, fill, later, made);
  for (const image::MntEntry& entry : maker.all()) {
    if (entry.ext_key().empty() || entry.made_inside() || entry.mountpoint() == "/") continue;
    const auto named = external.named.find(entry.ext_key());
    if (named != external.named.end()) {
      // As CRIU has it, a relative path is one from the root.
      outside[entry.mnt_id()] = std::filesystem::path("/") / named->second;
    } else if (external.automatic && entry.ext_automatic()) {
      outside[entry.mnt_id()] = entry.ext_key();
    } else {
      return NotGiven(entry, "was given from outside");
    }
  }
  return Annotate(maker.Run(directory, outside), "the mount namespace that the tree had");
}

}  // namespace stasis::engine
