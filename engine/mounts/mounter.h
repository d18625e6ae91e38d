// Calls about mounts that the root of a tree makes itself: with its rights, in its namespaces.
#pragma once

#include <linux/mount.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/fill_tmpfs.h"
#include "engine/proc/mountinfo.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// MOUNT_ATTR_* of what `entry` is mounted with, and all that there are.
std::uint64_t AttributesOf(const image::MntEntry& entry);
inline constexpr std::uint64_t kAllAttributes =
    MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
    MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOSYMFOLLOW | MOUNT_ATTR__ATIME;

/// Its descriptors are plain numbers here; what is left of them goes with the program that the root executes
/// later (all are O_CLOEXEC).
class Mounter {
 public:
  explicit Mounter(RestoredProcess& root) : root_(root), remote_(*root.remote) {}

  /// PermissionDenied when a filter of the root's own keeps it from mounting: asked by a call that the kernel
  /// refuses anyway, for an address that is none.
  Status CheckFilter();

  Result<std::vector<Mount>> Mounts() const;

  /// The mount whose root, or a file of which, descriptor `fd` is.
  Result<Mount> MountOf(int fd) const;

  /// RESOLVE_* in `resolve`. Through no symbolic link.
  Result<int> Open(int folder, const std::string& path, std::uint64_t resolve);

  /// A path that the user gave, which may have links in it.
  Result<int> OpenOutside(const std::string& path);

  /// `path` in the mount whose root is `mount`, itself when that is empty.
  Result<int> OpenIn(int mount, const std::string& path);

  /// The same, where there is nothing yet: on a file system of the runtime's that is new, too.
  Result<int> MakePlace(int mount, const std::string& path, bool is_folder);

  /// A new file or folder of type and mode `mode`, in a folder that is there, and its end.
  Status MakeEmpty(int mount, const std::string& path, unsigned mode);
  Status RemoveEmpty(int mount, const std::string& path, unsigned mode);

  Result<int> NewFileSystem(const image::MntEntry& entry);

  /// A new mount, in no place yet, of what `fd` is, without what is mounted below.
  Result<int> Copy(int fd);

  Status Attach(int mount, int place);

  Status Set(int mount, const mount_attr& attributes);

  /// Makes `mount` one of those that share with `with`, of which it is a part.
  Status ShareWith(int mount, int with);

  /// The whole file system of `mount`, not this mount of it alone.
  Status MakeReadOnly(int mount);

  Status Unmount(const std::string& place);

  /// Makes `mount` the root of the mount namespace, and of the process. What was it is gone then, with `over` mounts
  /// that are on top of it.
  Status PivotTo(int mount, std::size_t over);

  /// Has `fill` put into `folder`, of a new tmpfs, what that had which was `entry`.
  Status Fill(const FillTmpfs& fill, const image::MntEntry& entry, const UniqueFd& folder) const;

  /// In our own table, the folder `fd` of the root.
  Result<UniqueFd> Take(int fd) const;

  void Close(int fd);

 private:
  Result<int> OpenAs(int folder, const std::string& path, std::uint64_t resolve);
  Result<int> IdOfMount(int fd) const;
  Status SetOptions(unsigned options);
  Result<std::uint64_t> Empty();
  Status MakeOne(int folder, const std::string& name, bool is_folder);
  Status Configure(int context, unsigned command, const std::string& key,
                   const std::optional<std::string>& value);
  Status ConfigurePipe(int context);

  RestoredProcess& root_;
  RemoteSyscalls& remote_;
};

}  // namespace stasis::engine
