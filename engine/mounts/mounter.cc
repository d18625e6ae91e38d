// Source  mount(2), openat2(2), fsopen(2), move_mount(2), open_tree(2), mount_setattr(2), pivot_root(2), seccomp(2);
//         do_set_group() in fs/namespace.c; tested on 6.18
// Rule    Its seccomp filter does not judge our calls (process_tree.h), so it is asked first
#include "engine/mounts/mounter.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include "engine/base/io.h"
#include "engine/mounts/autofs.h"
#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mount_options.h"
#include "engine/proc/fdinfo.h"
#include "engine/proc/text.h"
#include "engine/tasks/process_tree.h"

#ifndef MOVE_MOUNT_SET_GROUP
#define MOVE_MOUNT_SET_GROUP 0x00000100  // linux/mount.h, from Linux 5.15 on
#endif

namespace stasis::engine {

std::uint64_t AttributesOf(const image::MntEntry& entry) {
  constexpr std::pair<unsigned long, std::uint64_t> kFlags[] = {
      {MS_RDONLY, MOUNT_ATTR_RDONLY},         {MS_NOSUID, MOUNT_ATTR_NOSUID},
      {MS_NODEV, MOUNT_ATTR_NODEV},           {MS_NOEXEC, MOUNT_ATTR_NOEXEC},
      {MS_NODIRATIME, MOUNT_ATTR_NODIRATIME}, {256, MOUNT_ATTR_NOSYMFOLLOW},  // MS_NOSYMFOLLOW
  };
  std::uint64_t attributes = 0;
  for (const auto& [flag, attribute] : kFlags) {
    if ((entry.flags() & flag) != 0) attributes |= attribute;
  }
  if ((entry.flags() & MS_NOATIME) != 0) return attributes | MOUNT_ATTR_NOATIME;
  return attributes |
         ((entry.flags() & MS_RELATIME) != 0 ? MOUNT_ATTR_RELATIME : MOUNT_ATTR_STRICTATIME);
}

Status Mounter::CheckFilter() {
  RETURN_IF_ERROR(SetOptions(RestoreOptions() & ~unsigned{PTRACE_O_SUSPEND_SECCOMP}));
  const Status answer = remote_.Call("mount", SYS_mount, 0, 1, 0, 0, 0).status();
  RETURN_IF_ERROR(SetOptions(RestoreOptions()));
  if (ErrnoOf(answer) == EFAULT) return OkStatus();
  return PermissionDenied("its seccomp profile does not allow mount(2)");
}

Result<std::vector<Mount>> Mounter::Mounts() const {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(root_.proc.get(), "mountinfo"));
  return ParseMountinfo(text);
}

Result<int> Mounter::IdOfMount(int fd) const {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(root_.proc.get(), "fdinfo/" + std::to_string(fd)));
  ASSIGN_OR_RETURN(const Fdinfo info, ParseFdinfo(text));
  return info.mnt_id;
}

Result<Mount> Mounter::MountOf(int fd) const {
  ASSIGN_OR_RETURN(const int id, IdOfMount(fd));
  ASSIGN_OR_RETURN(const std::vector<Mount> mounts, Mounts());
  const auto found = std::ranges::find(mounts, id, &Mount::id);
  if (found == mounts.end()) return FailedPrecondition("it is on no mount that is to be seen");
  return *found;
}

Result<int> Mounter::Open(int folder, const std::string& path, std::uint64_t resolve) {
  return OpenAs(folder, path, resolve | RESOLVE_NO_SYMLINKS);
}

// By us: in a user namespace of its own it may not come through folders of the machine's root. Through its root directory,
// so that what is open is of its mount namespace.
Result<int> Mounter::OpenOutside(const std::string& path) {
  ASSIGN_OR_RETURN(const UniqueFd root, OpenAt(root_.proc.get(), "root", O_PATH | O_DIRECTORY));
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenInRoot(root.get(), path, O_PATH));
  return SendInto(root_, fd.get());
}

Result<int> Mounter::OpenAs(int folder, const std::string& path, std::uint64_t resolve) {
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(path));
  open_how how = {};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = resolve;
  ASSIGN_OR_RETURN(const std::uint64_t address, remote_.PutValue(how));
  ASSIGN_OR_RETURN(const std::uint64_t fd,
                   remote_.Call("open " + path, SYS_openat2, folder, name, address, sizeof(how)));
  return static_cast<int>(fd);
}

Result<int> Mounter::OpenIn(int mount, const std::string& path) {
  const std::string name = path.empty() ? "." : path;
  Result<int> fd = Open(mount, name, RESOLVE_BENEATH | RESOLVE_NO_XDEV);
  if (ErrnoOf(fd.status()) != EXDEV) return fd;
  // Rule: a folder of autofs on which something could be mounted is taken for one on which it is (follow_automount()
  // in fs/namei.c).
  ASSIGN_OR_RETURN(const int found, Open(mount, name, RESOLVE_BENEATH));
  ASSIGN_OR_RETURN(const int here, IdOfMount(mount));
  ASSIGN_OR_RETURN(const int there, IdOfMount(found));
  if (there == here) return found;
  Close(found);
  return fd;
}

Result<int> Mounter::MakePlace(int mount, const std::string& path, bool is_folder) {
  Result<int> fd = OpenIn(mount, "");
  for (std::string_view rest = path; fd.ok() && !rest.empty();) {
    const std::string name(text::Cut(rest, '/'));
    Result<int> next = OpenIn(*fd, name);
    if (ErrnoOf(next.status()) == ENOENT) {
      RETURN_IF_ERROR(MakeOne(*fd, name, is_folder || !rest.empty()));
      next = OpenIn(*fd, name);
    }
    Close(*fd);
    fd = std::move(next);
  }
  return fd;
}

Status Mounter::MakeEmpty(int mount, const std::string& path, unsigned mode) {
  const std::size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  ASSIGN_OR_RETURN(const int folder,
                   OpenIn(mount, slash == std::string::npos ? "" : path.substr(0, slash)));
  RETURN_IF_ERROR(MakeOne(folder, name, S_ISDIR(mode)));
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote_.Put(name));
  RETURN_IF_ERROR(
      remote_.Call("chmod " + name, SYS_fchmodat, folder, address, mode & 07777).status());
  Close(folder);
  return OkStatus();
}

Status Mounter::RemoveEmpty(int mount, const std::string& path, unsigned mode) {
  const std::size_t slash = path.rfind('/');
  ASSIGN_OR_RETURN(const int folder,
                   OpenIn(mount, slash == std::string::npos ? "" : path.substr(0, slash)));
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t name,
                   remote_.Put(slash == std::string::npos ? path : path.substr(slash + 1)));
  RETURN_IF_ERROR(
      remote_.Call("remove " + path, SYS_unlinkat, folder, name, S_ISDIR(mode) ? AT_REMOVEDIR : 0)
          .status());
  Close(folder);
  return OkStatus();
}

Result<int> Mounter::NewFileSystem(const image::MntEntry& entry) {
  const std::string type = FsTypeName(entry);
  if (type == "autofs") RETURN_IF_ERROR(JoinOwnGroup(root_));
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(type));
  ASSIGN_OR_RETURN(const std::uint64_t context,
                   remote_.Call("fsopen " + type, SYS_fsopen, name, FSOPEN_CLOEXEC));
  const int fd = static_cast<int>(context);
  RETURN_IF_ERROR(Configure(fd, FSCONFIG_SET_STRING, "source",
                            entry.source().empty() ? "none" : entry.source()));
  ASSIGN_OR_RETURN(const std::vector<MountOption> options, OptionsOf(entry));
  for (const auto& [key, value] : options) {
    const unsigned command = value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
    RETURN_IF_ERROR(Configure(fd, command, key, value));
  }
  if (type == "autofs") RETURN_IF_ERROR(ConfigurePipe(fd));
  RETURN_IF_ERROR(
      remote_.Call("make the file system", SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, 0, 0, 0)
          .status());
  ASSIGN_OR_RETURN(const std::uint64_t mount,
                   remote_.Call("fsmount " + type, SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0));
  Close(fd);
  for (const std::string& folder : entry.autofs_folders()) {
    ASSIGN_OR_RETURN(const int place, MakePlace(static_cast<int>(mount), folder, true));
    Close(place);
  }
  return static_cast<int>(mount);
}

Result<int> Mounter::Copy(int fd) {
  ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
  ASSIGN_OR_RETURN(const std::uint64_t copy,
                   remote_.Call("open_tree", SYS_open_tree, fd, empty,
                                OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH));
  return static_cast<int>(copy);
}

Status Mounter::Attach(int mount, int place) {
  ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
  return remote_
      .Call("move_mount", SYS_move_mount, mount, empty, place, empty,
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
      .status();
}

Status Mounter::Set(int mount, const mount_attr& attributes) {
  ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
  ASSIGN_OR_RETURN(const std::uint64_t address, remote_.PutValue(attributes));
  return remote_
      .Call("mount_setattr", SYS_mount_setattr, mount, empty, AT_EMPTY_PATH, address,
            sizeof(attributes))
      .status();
}

Status Mounter::MakeReadOnly(int mount) {
  ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
  ASSIGN_OR_RETURN(const std::uint64_t context, remote_.Call("fspick", SYS_fspick, mount, empty,
                                                             FSPICK_CLOEXEC | FSPICK_EMPTY_PATH));
  const int fd = static_cast<int>(context);
  RETURN_IF_ERROR(Configure(fd, FSCONFIG_SET_FLAG, "ro", std::nullopt));
  RETURN_IF_ERROR(
      remote_.Call("make it read-only", SYS_fsconfig, fd, FSCONFIG_CMD_RECONFIGURE, 0, 0, 0)
          .status());
  Close(fd);
  return OkStatus();
}

Status Mounter::Unmount(const std::string& place) {
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(place));
  return remote_.Call("unmount " + place, SYS_umount2, name, MNT_DETACH | UMOUNT_NOFOLLOW).status();
}

Status Mounter::Fill(const FillTmpfs& fill, const image::MntEntry& entry,
                     const UniqueFd& folder) const {
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::Of(root_.proc.get()));
  return AsRootOf(ids, [&] { return fill(entry.root_dev(), folder.get(), ids); });
}

Result<UniqueFd> Mounter::Take(int fd) const {
  return OpenAt(root_.proc.get(), "fd/" + std::to_string(fd), O_RDONLY | O_DIRECTORY);
}

void Mounter::Close(int fd) { (void)remote_.Call("close", SYS_close, fd); }

Status Mounter::SetOptions(unsigned options) {
  if (::ptrace(PTRACE_SETOPTIONS, remote_.tracee().tid(), nullptr,
               reinterpret_cast<void*>(static_cast<std::uintptr_t>(options))) != 0) {
    return SyscallError(errno, "ptrace SETOPTIONS");
  }
  return OkStatus();
}

Result<std::uint64_t> Mounter::Empty() {
  remote_.ResetArguments();
  return remote_.Put(std::string_view(""));
}

Status Mounter::MakeOne(int folder, const std::string& name, bool is_folder) {
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote_.Put(name));
  if (is_folder) {
    return remote_.Call("mkdir " + name, SYS_mkdirat, folder, address, 0755).status();
  }
  return remote_.Call("mknod " + name, SYS_mknodat, folder, address, S_IFREG | 0644, 0).status();
}

Status Mounter::Configure(int context, unsigned command, const std::string& key,
                          const std::optional<std::string>& value) {
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t name, remote_.Put(key));
  std::uint64_t address = 0;
  if (value) {
    ASSIGN_OR_RETURN(address, remote_.Put(*value));
  }
  return remote_
      .Call("set " + key + (value ? "=" + *value : ""), SYS_fsconfig, context, command, name,
            address, 0)
      .status();
}

// There is no autofs without one: this one is gone with the program that the root executes.
Status Mounter::ConfigurePipe(int context) {
  using Ends = std::array<int, 2>;
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote_.Reserve(sizeof(Ends)));
  RETURN_IF_ERROR(remote_.Call("pipe", SYS_pipe2, address, O_CLOEXEC).status());
  ASSIGN_OR_RETURN(const Ends ends, remote_.ReadValue<Ends>(address));
  return Configure(context, FSCONFIG_SET_STRING, "fd", std::to_string(ends[1]));
}

Status Mounter::ShareWith(int mount, int with) {
  ASSIGN_OR_RETURN(const std::uint64_t empty, Empty());
  return remote_
      .Call("move_mount SET_GROUP", SYS_move_mount, with, empty, mount, empty,
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH | MOVE_MOUNT_SET_GROUP)
      .status();
}

Status Mounter::PivotTo(int mount, std::size_t over) {
  RETURN_IF_ERROR(remote_.Call("fchdir", SYS_fchdir, mount).status());
  remote_.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t here, remote_.Put(std::string_view(".")));
  // pivot_root(2), "pivot_root(".", ".")": the old root is on top of the new one then.
  RETURN_IF_ERROR(remote_.Call("pivot_root", SYS_pivot_root, here, here).status());
  for (std::size_t left = over + 1; left > 0; --left) {
    RETURN_IF_ERROR(
        remote_.Call("unmount what was the root", SYS_umount2, here, MNT_DETACH).status());
  }
  ASSIGN_OR_RETURN(const std::uint64_t root, remote_.Put(std::string_view("/")));
  return remote_.Call("chdir", SYS_chdir, root).status();
}

}  // namespace stasis::engine
