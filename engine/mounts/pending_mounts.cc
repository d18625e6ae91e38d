// Source  pts(4), mount_namespaces(7); fs/devpts/inode.c; tested on 6.18
// Rule    The file of a terminal below /dev/pts is there as long as its other end is open: a mount of it is made when
//         both ends are
#include "engine/mounts/pending_mounts.h"

#include <sys/mount.h>
#include <sys/sysmacros.h>

#include <cerrno>

#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mounter.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

std::uint64_t Propagation(PlannedMount::Sharing sharing) {
  switch (sharing) {
    case PlannedMount::Sharing::kShared:
      return MS_SHARED;
    case PlannedMount::Sharing::kUnbindable:
      return MS_UNBINDABLE;
    default:
      return MS_PRIVATE;
  }
}

Status MountTerminal(RestoredProcess& root, const PendingTerminal& terminal,
                     const MountNamespaces& namespaces) {
  Mounter mounter(root);
  RETURN_IF_ERROR(namespaces.Enter(root, terminal.of_devpts));
  const Result<int> source = mounter.OpenIn(terminal.devpts, terminal.name);
  if (ErrnoOf(source.status()) == ENOENT) {
    return FailedPrecondition("no file of the tree is the other end of the terminal " +
                              terminal.name);
  }
  RETURN_IF_ERROR(source.status());
  ASSIGN_OR_RETURN(const int made, mounter.Copy(*source));
  // A copy is a peer of what it is a copy of.
  mount_attr attributes = {};
  attributes.propagation = MS_PRIVATE;
  RETURN_IF_ERROR(mounter.Set(made, attributes));
  RETURN_IF_ERROR(namespaces.Enter(root, terminal.number));
  RETURN_IF_ERROR(mounter.Attach(made, terminal.place));
  attributes.attr_set = AttributesOf(terminal.entry);
  attributes.attr_clr = kAllAttributes;
  attributes.propagation = Propagation(terminal.sharing);
  RETURN_IF_ERROR(mounter.Set(made, attributes));
  for (const int fd : {*source, made, terminal.place}) mounter.Close(fd);
  return OkStatus();
}

Status MakeReadOnly(RestoredProcess& root, const PendingReadOnly& mount,
                    const MountNamespaces& namespaces) {
  Mounter mounter(root);
  RETURN_IF_ERROR(namespaces.Enter(root, mount.number));
  mount_attr attributes = {};
  attributes.attr_set = MOUNT_ATTR_RDONLY;
  if (mount.this_mount) RETURN_IF_ERROR(mounter.Set(mount.mount, attributes));
  if (mount.whole_file_system) RETURN_IF_ERROR(mounter.MakeReadOnly(mount.mount));
  mounter.Close(mount.mount);
  return OkStatus();
}

}  // namespace

Status FinishMounts(RestoredProcess& root, const PendingMounts& mounts,
                    const MountNamespaces& namespaces) {
  for (const PendingTerminal& terminal : mounts.terminals) {
    RETURN_IF_ERROR(Annotate(MountTerminal(root, terminal, namespaces),
                             "mount at " + terminal.entry.mountpoint()));
  }
  for (const PendingReadOnly& mount : mounts.read_only) {
    RETURN_IF_ERROR(MakeReadOnly(root, mount, namespaces));
  }
  return namespaces.GoHome(root);
}

void GiveTerminals(std::vector<image::MntEntry>& mounts, const IsOwnTerminal& is_own) {
  for (image::MntEntry& mount : mounts) {
    if (!mount.made_inside() || FsTypeName(mount) != "devpts" || mount.root() == "/") continue;
    const Result<std::uint32_t> index = text::Number<std::uint32_t>(mount.root().substr(1));
    const dev_t device = makedev(mount.root_dev() >> 20, mount.root_dev() & 0xfffff);
    if (index.ok() && is_own(device, *index)) continue;
    mount.clear_made_inside();
    mount.set_ext_key(mount.mountpoint());
  }
}

}  // namespace stasis::engine
