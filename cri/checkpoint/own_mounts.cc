// Source  openat2(2) RESOLVE_IN_ROOT, statx(2) stx_mnt_id, proc_pid_mountinfo(5); OCI runtime
//         specification (mounts, linux.maskedPaths, linux.readonlyPaths, linux.rootfsPropagation)
// Rule    The specification's places may lead through links. What is mounted at one is in a stack there: the
//         runtime's are the lowest of it, as many as the specification names
// Rule    A bind mount of "rbind" brings those below its source along, and a cgroup mount has one for each
//         hierarchy. The former are on the host too, with the same root of the same file system
#include "cri/checkpoint/own_mounts.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "archive/json_fields.h"
#include "cri/restore/placeholder.h"
#include "engine/base/io.h"
#include "engine/mounts/mount_entry.h"

namespace stasis::cri {
namespace {

using engine::Mount;
using engine::MountChanges;

// The id of the mount whose root `path` in `root` leads to; 0 when there is none.
Result<int> MountAt(int root, const std::string& path) {
  open_how how = {};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT;
  const UniqueFd fd(
      static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof(how))));
  if (!fd) {
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP) return 0;
    return SyscallError(errno, "open " + path);
  }
  struct statx st = {};
  if (::statx(fd.get(), "", AT_EMPTY_PATH, STATX_MNT_ID, &st) != 0) {
    return SyscallError(errno, "statx " + path);
  }
  return (st.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0 ? static_cast<int>(st.stx_mnt_id) : 0;
}

// What the specification says of one mount.
struct Given {
  std::string place, type;
  bool read_only = false;
  bool shared = false;
  bool brings_others = false;
  bool by_mask = false;  // a path that the runtime hides, protects or brings where there is one
};

Given FromMount(const nlohmann::json& mount) {
  Given given;
  given.place = archive::TextField(mount, "destination");
  given.type = archive::TextField(mount, "type");
  given.brings_others = given.type.starts_with("cgroup");
  for (const nlohmann::json& option : archive::ArrayField(mount, "options")) {
    if (option == "ro" || option == "rro") given.read_only = true;
    if (option == "rw") given.read_only = false;
    if (option == "bind" || option == "rbind") given.type = "bind";
    if (option == "rbind") given.brings_others = true;
    if (option == "shared" || option == "rshared") given.shared = true;
  }
  return given;
}

// Rule    Nobody makes device nodes in a user namespace (mknod(2)): a runtime mounts those of the host there, the ones that
//         every container has (OCI runtime specification, "Default Devices") and its own.
void AddDevices(const nlohmann::json& linux, std::vector<Given>& all) {
  if (archive::ArrayField(linux, "uidMappings").empty()) return;
  for (const char* const name : {"null", "zero", "full", "random", "urandom", "tty"}) {
    all.push_back({.place = std::string("/dev/") + name, .type = "", .by_mask = true});
  }
  for (const nlohmann::json& device : archive::ArrayField(linux, "devices")) {
    const std::string path = archive::TextField(device, "path");
    const bool is_known =
        std::ranges::any_of(all, [&](const Given& given) { return given.place == path; });
    if (!is_known) all.push_back({.place = path, .type = "", .by_mask = true});
  }
}

std::vector<Given> GivenBy(const nlohmann::json& spec) {
  std::vector<Given> all;
  const nlohmann::json& linux = archive::Field(spec, "linux");
  const std::string sharing = archive::TextField(linux, "rootfsPropagation");
  const nlohmann::json& read_only = archive::Field(archive::Field(spec, "root"), "readonly");
  all.push_back({.place = "/",
                 .type = "",
                 .read_only = read_only == true,
                 .shared = sharing == "shared" || sharing == "rshared"});
  for (const nlohmann::json& mount : archive::ArrayField(spec, "mounts")) {
    all.push_back(FromMount(mount));
    all.back().shared |= all.front().shared;  // what is mounted on a shared mount is one
  }
  for (const char* const list : {"maskedPaths", "readonlyPaths"}) {
    for (const nlohmann::json& path : archive::ArrayField(linux, list)) {
      if (!path.is_string()) continue;
      all.push_back({.place = path.get<std::string>(), .type = "", .by_mask = true});
    }
  }
  all.push_back({.place = "/dev/console", .type = "", .by_mask = true});
  AddDevices(linux, all);
  return all;
}

bool IsOfType(const Mount& mount, const std::string& type) {
  if (type.starts_with("cgroup"))
    return mount.fs_type == "tmpfs" || mount.fs_type.starts_with("cgroup");
  for (const char* const known : {"tmpfs", "proc", "sysfs", "mqueue", "devpts"}) {
    if (type == known) return mount.fs_type == known;
  }
  return true;
}

bool IsReadOnly(const Mount& mount) {
  return mount.options == "ro" || mount.options.starts_with("ro,");
}

// A file system's device, and what of it is mounted.
using Origin = std::tuple<std::uint32_t, std::uint32_t, std::string>;
Origin OriginOf(const Mount& mount) { return {mount.dev_major, mount.dev_minor, mount.root}; }

// As this program and the node's first process see them.
std::set<Origin> MountsOfTheHost() {
  std::set<Origin> origins;
  for (const char* const path : {"/proc/self/mountinfo", "/proc/1/mountinfo"}) {
    const Result<std::string> text = ReadFileAt(AT_FDCWD, path);
    const auto mounts = text.ok() ? engine::ParseMountinfo(*text) : text.status();
    if (!mounts.ok()) continue;  // then less is known to be brought along
    for (const Mount& mount : *mounts) origins.insert(OriginOf(mount));
  }
  return origins;
}

class Comparison {
 public:
  Comparison(int root, std::span<const Mount> mounts) : root_(root), mounts_(mounts) {
    for (const Mount& mount : mounts) by_id_.emplace(mount.id, &mount);
  }

  Result<MountChanges> Run(const nlohmann::json& spec) {
    std::map<std::string, std::size_t> taken;  // of the stack at each place
    for (const Given& given : GivenBy(spec)) {
      ASSIGN_OR_RETURN(const std::string place, PlaceOf(given));
      const std::vector<const Mount*> stack = StackAt(place);
      std::size_t& next = taken[place];
      const bool is_there = next < stack.size() && IsOfType(*stack[next], given.type);
      if (is_there) {
        Take(*stack[next++], given);
      } else if (!given.by_mask && given.place != kPlaceholderPath) {
        changes_.unmounted.push_back(given.place);
      }
    }
    std::optional<std::set<Origin>> host;
    for (const Mount& mount : mounts_) {
      if (known_.contains(mount.id)) continue;
      if (const Mount* volume = VolumeOf(mount); volume != nullptr) {
        if (!host) host = MountsOfTheHost();
        if (volume->fs_type.starts_with("cgroup") || mount.fs_type.starts_with("cgroup") ||
            host->contains(OriginOf(mount))) {
          continue;
        }
      }
      changes_.made.insert(mount.id);
    }
    return changes_;
  }

 private:
  const Mount* Find(int id) const {
    const auto found = by_id_.find(id);
    return found == by_id_.end() ? nullptr : found->second;
  }

  // A mount point, where that is to be had: the path itself, else where its links lead to.
  Result<std::string> PlaceOf(const Given& given) const {
    if (std::ranges::find(mounts_, given.place, &Mount::mountpoint) != mounts_.end()) {
      return given.place;
    }
    ASSIGN_OR_RETURN(const int id, MountAt(root_, given.place));
    const Mount* mount = Find(id);
    return mount == nullptr ? given.place : mount->mountpoint;
  }

  // What is mounted there, the lowest first.
  std::vector<const Mount*> StackAt(const std::string& place) const {
    std::vector<const Mount*> all, stack;
    for (const Mount& mount : mounts_) {
      if (mount.mountpoint == place) all.push_back(&mount);
    }
    while (stack.size() < all.size()) {
      const auto next = std::ranges::find_if(all, [&](const Mount* mount) {
        const bool is_on_another = std::ranges::any_of(
            all, [&](const Mount* other) { return other != mount && other->id == mount->parent; });
        return stack.empty() ? !is_on_another : mount->parent == stack.back()->id;
      });
      if (next == all.end()) break;
      stack.push_back(*next);
    }
    return stack;
  }

  void Take(const Mount& mount, const Given& given) {
    known_.insert(mount.id);
    if (given.brings_others) volumes_.insert(mount.id);
    // Of cgroups a runtime has its own mind: the tmpfs that holds v1's hierarchies is read-only, or not.
    if (given.by_mask || given.type.starts_with("cgroup")) return;
    if (IsReadOnly(mount) != given.read_only) changes_.access.insert(mount.id);
    if (IsShared(mount) && !given.shared) changes_.sharing.insert(mount.id);
  }

  const Mount* VolumeOf(const Mount& mount) const {
    int id = mount.parent;
    for (std::size_t depth = 0; depth < mounts_.size(); ++depth) {
      const Mount* parent = Find(id);
      if (parent == nullptr) return nullptr;
      if (volumes_.contains(id)) return parent;
      id = parent->parent;
    }
    return nullptr;
  }

  const int root_;
  const std::span<const Mount> mounts_;
  std::map<int, const Mount*> by_id_;
  std::set<int> known_, volumes_;
  MountChanges changes_;
};

}  // namespace

engine::CompareMounts CompareWithSpecification(const ContainerFacts& facts) {
  return [pid = facts.pid,
          spec = facts.spec](std::span<const Mount> mounts) -> Result<MountChanges> {
    ASSIGN_OR_RETURN(const UniqueFd root, OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/root",
                                                 O_PATH | O_DIRECTORY));
    ASSIGN_OR_RETURN(MountChanges changes, Comparison(root.get(), mounts).Run(spec));
    if (HasCapability(spec, "CAP_SYS_ADMIN")) return changes;
    // No process of it can have changed any: what differs is the runtime's.
    const auto made = std::ranges::find_if(
        mounts, [&](const Mount& mount) { return changes.made.contains(mount.id); });
    if (made == mounts.end()) return MountChanges();
    return Unimplemented(made->fs_type + " is mounted at " + made->mountpoint +
                         ", which neither the runtime did nor a process of the container can have "
                         "done (CAP_SYS_ADMIN); it cannot be checkpointed");
  };
}

}  // namespace stasis::cri
