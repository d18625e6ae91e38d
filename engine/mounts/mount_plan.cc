// Source  proc_pid_mountinfo(5), mount_namespaces(7); kernel's Documentation/filesystems/sharedsubtree.rst;
//         tested on 6.18
// Rule    A bind mount is known by its file system's device number, which a mount of the runtime's or another one
//         made inside has too, and by the path of its root in there. The path is one of the host where the
//         file system is: only what is left of it below the other mount's root means something elsewhere
// Rule    Ids of mounts are given again: they say nothing about the order. A mount needs the one that it is on and
//         the one that it is a part of, and both places still to be seen
#include "engine/mounts/mount_plan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mount_options.h"

namespace stasis::engine {
namespace {

using Sharing = PlannedMount::Sharing;

constexpr std::size_t kMostMounts = 10'000;   // of a namespace
constexpr std::size_t kMostMadeInside = 200;  // each has a descriptor while the others are made
constexpr std::size_t kLongestPath = 4096;    // PATH_MAX

// File systems that are in memory alone and have nothing that is not written down elsewhere.
constexpr std::string_view kNewTypes[] = {"tmpfs", "proc", "sysfs", "mqueue", "devpts", "autofs"};

bool IsPlainPath(std::string_view path) {
  if (path == "/") return true;
  if (!path.starts_with('/') || path.size() >= kLongestPath) return false;
  if (path.find('\0') != std::string_view::npos) return false;
  while (!path.empty()) {
    path.remove_prefix(1);
    const std::string_view name = path.substr(0, path.find('/'));
    if (name.empty() || name == "." || name == "..") return false;
    path.remove_prefix(name.size());
  }
  return true;
}

// What is left of `path` below `top`, without a slash in front; unset when it is not there or below.
std::optional<std::string> Below(std::string_view path, std::string_view top) {
  if (path == top) return "";
  if (top != "/") {
    if (!path.starts_with(top)) return std::nullopt;
    path.remove_prefix(top.size());
  }
  if (!path.starts_with('/')) return std::nullopt;
  return std::string(path.substr(1));
}

// Whether a mount at `place` hides what is at `path`, both in one other mount.
bool Covers(const std::string& place, const std::string& path) {
  return !place.empty() && (path == place || path.starts_with(place + "/"));
}

class Planner {
 public:
  /// `outside`: where all but the root is to be made.
  explicit Planner(std::span<const image::MntEntry> all, const OutsidePaths* outside = nullptr)
      : all_(all), outside_(outside) {}

  Result<RootPlan> RunWhole() {
    RETURN_IF_ERROR(Index());
    RootPlan plan;
    const auto root =
        std::ranges::find_if(all_, [this](const auto& entry) { return IsRoot(entry); });
    if (root == all_.end()) return Unimplemented("its root directory is no mount of its own");
    plan.root = root->mnt_id();
    root_ = &*root;
    for (const image::MntEntry& entry : all_) {
      if (&entry == root_) continue;
      Result<PlannedMount> mount = Plan(entry);
      if (mount.ok()) {
        plan_.push_back(*std::move(mount));
      } else if (mount.status().code() == StatusCode::kUnimplemented) {
        plan.refused.emplace_back(entry.mnt_id(), mount.status());
      } else {
        return Annotate(mount.status(), entry.mountpoint());
      }
    }
    ASSIGN_OR_RETURN(plan.mounts, Sorted());
    return plan;
  }

  Result<std::vector<PlannedMount>> Run() {
    RETURN_IF_ERROR(Index());
    for (const image::MntEntry& entry : all_) {
      if (!entry.made_inside()) continue;
      Result<PlannedMount> mount = Plan(entry);
      if (!mount.ok()) return Refused(entry, mount.status());
      plan_.push_back(*std::move(mount));
    }
    return Sorted();
  }

 private:
  static Status Refused(const image::MntEntry& entry, const Status& why) {
    if (why.code() != StatusCode::kUnimplemented) return Annotate(why, entry.mountpoint());
    return Unimplemented("a process has mounted " + FsTypeName(entry) + " at " +
                         entry.mountpoint() + ", which cannot be checkpointed: " + Message(why));
  }

  Status Index() {
    if (all_.size() > kMostMounts) return ResourceExhausted("more mounts than a namespace has");
    std::size_t made = 0;
    for (const image::MntEntry& entry : all_) {
      if (!by_id_.emplace(entry.mnt_id(), &entry).second) {
        return InvalidArgument("two mounts with the id " + std::to_string(entry.mnt_id()));
      }
      made += entry.made_inside() || outside_ != nullptr ? 1 : 0;
    }
    if (made <= kMostMadeInside) return OkStatus();
    return Unimplemented("processes have made " + std::to_string(made) + " mounts; more than " +
                         std::to_string(kMostMadeInside) + " cannot be checkpointed");
  }

  const image::MntEntry* Find(std::uint32_t id) const {
    const auto found = by_id_.find(id);
    return found == by_id_.end() ? nullptr : found->second;
  }

  // Of a mount namespace, as far as its processes see.
  bool IsRoot(const image::MntEntry& entry) const {
    return entry.mountpoint() == "/" && Find(entry.parent_mnt_id()) == nullptr;
  }

  Result<PlannedMount> Plan(const image::MntEntry& entry) const {
    PlannedMount mount;
    mount.entry = &entry;
    if (!IsPlainPath(entry.mountpoint())) return InvalidArgument("not a path of a mount");
    if (outside_ != nullptr && IsRoot(entry)) {
      mount.is_root = true;
      RETURN_IF_ERROR(FindSource(mount));
      if (mount.is_removed) return Unimplemented("what is mounted was removed");
      return mount;
    }
    const image::MntEntry* parent = Find(entry.parent_mnt_id());
    if (parent == nullptr || parent == &entry) {
      return Unimplemented("it is not on a mount that the first process sees");
    }
    const std::optional<std::string> place = Below(entry.mountpoint(), parent->mountpoint());
    if (!place) return InvalidArgument("it is not below the mount that it is on");
    mount.parent = parent->mnt_id();
    mount.path_in_parent = *place;
    RETURN_IF_ERROR(CheckParent(*parent));
    RETURN_IF_ERROR(FindSource(mount));
    ASSIGN_OR_RETURN(mount.sharing, SharingOf(mount));
    return mount;
  }

  // What is mounted on a shared mount comes to its peers too.
  Status CheckParent(const image::MntEntry& parent) const {
    if (IsOfTerminal(parent)) return Unimplemented("it is on a terminal");
    if (parent.shared_id() == 0 || outside_ != nullptr) return OkStatus();
    if (!parent.made_inside() && !parent.sharing_changed()) {
      return Unimplemented("it is on a mount that is shared with outside of the container");
    }
    for (const image::MntEntry& other : all_) {
      if (&other == &parent) continue;
      if (other.shared_id() == parent.shared_id() || other.master_id() == parent.shared_id()) {
        return Unimplemented("it is on a mount that shares what is mounted with " +
                             other.mountpoint());
      }
    }
    return OkStatus();
  }

  Status FindSource(PlannedMount& mount) const {
    const image::MntEntry& entry = *mount.entry;
    if (outside_ != nullptr && outside_->contains(entry.mnt_id())) {
      mount.outside = outside_->at(entry.mnt_id());
      return OkStatus();
    }
    mount.is_removed = entry.deleted();
    if (mount.is_removed && outside_ == nullptr)
      return Unimplemented("what is mounted was removed");
    mount.is_terminal = IsOfTerminal(entry);
    if (mount.is_removed && mount.is_terminal) return Unimplemented("it is of a closed terminal");
    const image::MntEntry* best = nullptr;
    bool is_known = false;
    for (const image::MntEntry& other : all_) {
      if (other.root_dev() != entry.root_dev() || other.deleted() || !IsGiven(other)) continue;
      is_known = true;
      if (!Below(entry.root(), other.root())) continue;
      if (best == nullptr || other.root().size() > best->root().size()) best = &other;
    }
    if (best == nullptr && is_known) {
      return Unimplemented(
          "it is of a part of a file system that the container has no other mount of");
    }
    if (best != nullptr && mount.is_terminal) return Unimplemented("it is of a terminal");
    const bool can_be_new = CanBeNew(FsTypeName(entry));
    if (best == nullptr && !can_be_new) {
      return Unimplemented(
          outside_ != nullptr
              ? "it is of a file system that only the machine has"
              : "only tmpfs, proc, sysfs, mqueue, devpts, autofs and bind mounts of what "
                "the container has can be made again");
    }
    if (best == nullptr) best = FirstOf(entry.root_dev());
    if (best == nullptr) return Unimplemented("only a part of its file system is mounted");
    if (best == &entry) {
      mount.is_new = true;
      return OptionsOf(entry).status();
    }
    mount.source = best->mnt_id();
    mount.path_in_source = *Below(entry.root(), best->root());
    if (mount.path_in_source.empty() || IsPlainPath("/" + mount.path_in_source)) return OkStatus();
    return InvalidArgument("not a path of a file system");
  }

  // Below a root of its own.
  bool IsOfTerminal(const image::MntEntry& entry) const {
    return outside_ != nullptr && FsTypeName(entry) == "devpts" && entry.root() != "/" &&
           !outside_->contains(entry.mnt_id());
  }

  // What the other mounts of its file system are made of.
  bool IsGiven(const image::MntEntry& entry) const {
    if (outside_ == nullptr) return !entry.made_inside();
    return &entry == root_ || outside_->contains(entry.mnt_id());
  }

  bool CanBeNew(std::string_view type) const {
    const auto is_in = [&](const auto& list) {
      return std::ranges::find(list, type) != std::end(list);
    };
    return is_in(kNewTypes) || (outside_ != nullptr && IsOfMachine(type));
  }

  // The one that stands for a file system made inside: of those of all of it, the one that is on the fewest others.
  const image::MntEntry* FirstOf(std::uint32_t device) const {
    const image::MntEntry* first = nullptr;
    std::size_t least = 0;
    for (const image::MntEntry& entry : all_) {
      if (entry.root_dev() != device || entry.root() != "/") continue;
      const std::size_t depth = Depth(entry);
      if (first != nullptr && depth >= least) continue;
      first = &entry;
      least = depth;
    }
    return first;
  }

  std::size_t Depth(const image::MntEntry& entry) const {
    std::size_t depth = 0;
    for (const image::MntEntry* at = &entry; at != nullptr && depth < all_.size(); ++depth) {
      at = Find(at->parent_mnt_id());
    }
    return depth;
  }

  bool IsAlone(const image::MntEntry& entry) const {
    return std::ranges::count(all_, entry.shared_id(), &image::MntEntry::shared_id) == 1 &&
           std::ranges::count(all_, entry.shared_id(), &image::MntEntry::master_id) == 0;
  }

  Result<Sharing> SharingOf(const PlannedMount& mount) const {
    const image::MntEntry& entry = *mount.entry;
    if (outside_ != nullptr && !mount.is_terminal) return Sharing::kPrivate;
    // Below a root of its own all are private while they are made.
    const bool is_alone = mount.is_new || mount.is_terminal;
    const image::MntEntry* source = is_alone ? nullptr : Find(mount.source);
    if (source != nullptr && source->sharing_changed() &&
        entry.shared_id() == source->shared_id()) {
      return Unimplemented("it shares what is mounted with " + source->mountpoint());
    }
    if (entry.unbindable()) return Sharing::kUnbindable;
    if (entry.shared_id() == 0 && entry.master_id() == 0) return Sharing::kPrivate;
    if (source != nullptr && entry.shared_id() == source->shared_id() &&
        entry.master_id() == source->master_id()) {
      return Sharing::kAsSource;
    }
    if (source != nullptr && entry.shared_id() == 0 && source->shared_id() == entry.master_id() &&
        !source->sharing_changed()) {
      return Sharing::kSlave;
    }
    if (entry.master_id() == 0 && IsAlone(entry)) return Sharing::kShared;
    return Unimplemented("with whom it shares what is mounted on it cannot be made again");
  }

  // Whether `later` has to wait for `earlier`.
  bool Waits(const PlannedMount& later, const PlannedMount& earlier) const {
    const std::uint32_t id = earlier.entry->mnt_id();
    if (later.parent == id || (!later.is_new && later.source == id)) return true;
    // It would hide where the earlier one is mounted, or what it is a mount of.
    const bool hides_place = later.parent == earlier.parent &&
                             later.path_in_parent != earlier.path_in_parent &&
                             Covers(later.path_in_parent, earlier.path_in_parent);
    // Of a root that is made anew, all is made of copies that nothing is mounted on.
    const bool hides_source = outside_ == nullptr && !earlier.is_new &&
                              later.parent == earlier.source &&
                              later.entry->mnt_id() != earlier.source &&
                              Covers(later.path_in_parent, earlier.path_in_source);
    return hides_place || hides_source;
  }

  Result<std::vector<PlannedMount>> Sorted() {
    std::vector<PlannedMount> sorted;
    while (!plan_.empty()) {
      const auto next = std::ranges::find_if(plan_, [&](const PlannedMount& mount) {
        return std::ranges::none_of(plan_, [&](const PlannedMount& other) {
          return &other != &mount && Waits(mount, other);
        });
      });
      if (next == plan_.end()) {
        return Refused(*plan_.front().entry,
                       Unimplemented("what it needs is hidden by another mount"));
      }
      sorted.push_back(std::move(*next));
      plan_.erase(next);
    }
    return sorted;
  }

  const std::span<const image::MntEntry> all_;
  const OutsidePaths* const outside_;
  const image::MntEntry* root_ = nullptr;  // of the tree
  std::map<std::uint32_t, const image::MntEntry*> by_id_;
  std::vector<PlannedMount> plan_;
};

}  // namespace

Result<std::vector<PlannedMount>> PlanMounts(std::span<const image::MntEntry> all) {
  return Planner(all).Run();
}

Result<RootPlan> PlanRoot(std::span<const image::MntEntry> all, const OutsidePaths& outside) {
  return Planner(all, &outside).RunWhole();
}

}  // namespace stasis::engine
