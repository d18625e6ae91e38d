// State    the options of the mount; the pipe, which the daemon reads; the folders of one that is indirect
// Image    autofs-DEVICE: the options, the daemon by the number of its process group, its descriptor of the pipe
// Restore  mounted with a pipe that nobody reads; silenced ("catatonic") once all is mounted that is on it, so that
//          nobody waits for an answer; at last given the daemon's pipe, by a call of the daemon's own
// Lost     when each folder was used last: it expires later than it would have
// Source   fs/autofs/inode.c, root.c, dev-ioctl.c; Documentation/filesystems/autofs.rst; tested on 6.18
// Rule     Who is of the daemon's process group, and everybody where it is silenced, sees what is there and makes nobody
//          mount anything (autofs_oz_mode()). Folders are made by the former alone, and before it is silenced
// Rule     AUTOFS_DEV_IOCTL_SETPIPEFD takes the caller's process group for the daemon's, which must be of the pid namespace
//          that the one before was of: so the root, which mounts, must have one of its own
#include "engine/mounts/autofs.h"

#include <fcntl.h>
#include <linux/auto_fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/image/image_file.h"
#include "engine/mounts/mount_entry.h"
#include "engine/proc/task.h"
#include "engine/proc/text.h"
#include "engine/tasks/process_tree.h"

namespace stasis::engine {
namespace {

// autofs_dev_ioctl, which is no C++: linux/auto_dev-ioctl.h.
struct DeviceRequest {
  std::uint32_t major = 1, minor = 1, size_bytes = 24;
  std::int32_t mount = -1, pipe = -1;
  std::uint32_t unused = 0;
};
static_assert(sizeof(DeviceRequest) == 24);
constexpr unsigned long kSetPipe = _IOWR(0x93, 0x78, DeviceRequest);  // AUTOFS_DEV_IOCTL_SETPIPEFD

constexpr std::int32_t kIndirect = 1;
constexpr std::pair<std::string_view, std::int32_t> kModes[] = {
    {"direct", 0}, {"indirect", kIndirect}, {"offset", 2}};  // CRIU's numbers

using Entry = image::AutofsEntry;
constexpr std::pair<std::string_view, void (Entry::*)(std::int32_t)> kNumbers[] = {
    {"fd", &Entry::set_fd},
    {"pgrp", &Entry::set_pgrp},
    {"timeout", &Entry::set_timeout},
    {"minproto", &Entry::set_minproto},
    {"maxproto", &Entry::set_maxproto},
    {"uid", &Entry::set_uid},
    {"gid", &Entry::set_gid}};

Status SetOption(std::string_view option, AutofsOptions& options) {
  const std::string_view key = text::Cut(option, '=');
  for (const auto& [name, mode] : kModes) {
    if (name == key) options.entry.set_mode(mode);
  }
  for (const auto& [name, set] : kNumbers) {
    if (name != key) continue;
    ASSIGN_OR_RETURN(const std::int32_t number, text::Number<std::int32_t>(option));
    (options.entry.*set)(number);
  }
  if (key == "pipe_ino" && option != "-1") {
    ASSIGN_OR_RETURN(options.pipe, text::Number<std::uint64_t>(option));
  }
  return OkStatus();
}

// The daemon's end of the pipe is a descriptor of its own, which it may have closed: then it is made of the other.
Result<UniqueFd> OpenPipe(const RestoredProcess& daemon, const Entry& entry) {
  const int number = entry.has_read_fd() ? entry.read_fd() : entry.fd();
  ASSIGN_OR_RETURN(const UniqueFd end,
                   OpenAt(daemon.proc.get(), "fd/" + std::to_string(number), O_PATH));
  struct stat st = {};
  if (::fstat(end.get(), &st) != 0 || !S_ISFIFO(st.st_mode)) {
    return DataLoss("fd " + std::to_string(number) + " of its daemon is no pipe");
  }
  // One that nobody reads is not waited for: fifo(7).
  ASSIGN_OR_RETURN(UniqueFd pipe, Reopen(end.get(), O_WRONLY | O_NONBLOCK));
  RETURN_IF_ERROR(SetStatusFlags(pipe.get(), O_WRONLY));
  return pipe;
}

Status Connect(RestoredProcess& daemon, int root, const Entry& entry) {
  ASSIGN_OR_RETURN(const UniqueFd pipe, OpenPipe(daemon, entry));
  ASSIGN_OR_RETURN(const UniqueFd device, OpenAt(AT_FDCWD, "/dev/autofs", O_RDONLY));
  ASSIGN_OR_RETURN(const int device_there, SendInto(daemon, device.get()));
  DeviceRequest request;
  ASSIGN_OR_RETURN(request.mount, SendInto(daemon, root));
  ASSIGN_OR_RETURN(request.pipe, SendInto(daemon, pipe.get()));
  RemoteSyscalls& remote = *daemon.remote;
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(request));
  RETURN_IF_ERROR(
      remote.Call("ioctl AUTOFS_DEV_IOCTL_SETPIPEFD", SYS_ioctl, device_there, kSetPipe, at)
          .status());
  for (const int fd : {device_there, request.mount, request.pipe}) {
    RETURN_IF_ERROR(remote.Call("close", SYS_close, fd).status());
  }
  return OkStatus();
}

}  // namespace

Result<AutofsOptions> ParseAutofs(std::string_view options) {
  AutofsOptions parsed;
  bool shows_pipe = false;
  while (!options.empty()) {
    const std::string_view option = text::Cut(options, ',');
    shows_pipe = shows_pipe || option.starts_with("pipe_ino=");
    RETURN_IF_ERROR(SetOption(option, parsed));
  }
  if (!parsed.entry.IsInitialized() || !shows_pipe) {
    return DataLoss("options of an autofs mount of which some are missing");
  }
  return parsed;
}

bool IsOwnAutofs(const image::MntEntry& entry) {
  return entry.made_inside() && FsTypeName(entry) == "autofs" && entry.root() == "/";
}

Status ReadAutofsFolders(int proc, std::span<image::MntEntry> mounts) {
  for (image::MntEntry& mount : mounts) {
    if (!IsOwnAutofs(mount)) continue;
    ASSIGN_OR_RETURN(const AutofsOptions options, ParseAutofs(mount.options()));
    const bool is_covered = std::ranges::any_of(mounts, [&](const image::MntEntry& other) {
      return other.parent_mnt_id() == mount.mnt_id() && other.mountpoint() == mount.mountpoint();
    });
    if (options.entry.mode() != kIndirect || is_covered) continue;
    ASSIGN_OR_RETURN(const UniqueFd root,
                     OpenAt(proc, "root" + mount.mountpoint(), O_RDONLY | O_DIRECTORY));
    std::error_code error;
    const std::string path = "/proc/self/fd/" + std::to_string(root.get());
    auto at = std::filesystem::directory_iterator(path, error);
    for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) {
      // By what its folder says of it: to look at it could make the daemon, which stands still, mount something.
      if (!at->is_directory()) {
        return Unimplemented("autofs at " + mount.mountpoint() + ": " +
                             at->path().filename().string() + " is no folder");
      }
      mount.add_autofs_folders(at->path().filename());
    }
    if (error) return SyscallError(error.value(), "list autofs at " + mount.mountpoint());
  }
  return OkStatus();
}

Status JoinOwnGroup(RestoredProcess& root) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(root.proc.get(), "status"));
  ASSIGN_OR_RETURN(const TaskStatus status, ParseTaskStatus(text));
  if (status.ns_pgid.back() != 0) return OkStatus();
  // Who leads a group cannot found a session any more: setsid(2).
  const bool leads = static_cast<pid_t>(root.image->tree.sid()) == root.image->pid();
  return leads ? root.remote->Call("setsid", SYS_setsid).status()
               : root.remote->Call("setpgid", SYS_setpgid, 0, 0).status();
}

Status Silence(const AutofsRoots& roots, std::span<const image::MntEntry> all) {
  for (const auto& [device, root] : roots) {
    const auto mount = std::ranges::find(all, device, &image::MntEntry::root_dev);
    ASSIGN_OR_RETURN(const AutofsOptions options, ParseAutofs(mount->options()));
    unsigned long seconds = static_cast<unsigned long>(options.entry.timeout());
    if (::ioctl(root.get(), AUTOFS_IOC_SETTIMEOUT, &seconds) != 0 ||
        ::ioctl(root.get(), AUTOFS_IOC_CATATONIC, 0) != 0) {
      return SyscallError(errno, "silence autofs at " + mount->mountpoint());
    }
  }
  return OkStatus();
}

Status ConnectAutofs(std::span<RestoredProcess> processes, const AutofsRoots& roots,
                     const ImageSource& source) {
  for (const auto& [device, root] : roots) {
    ASSIGN_OR_RETURN(const auto entries,
                     ReadRecords<Entry>(source, ImageName("autofs", device), "autofs"));
    if (entries.empty()) return DataLoss("an autofs mount without its image");
    const Entry& entry = entries.front();
    if (entry.fd() < 0) continue;
    const auto daemon = std::ranges::find_if(processes, [&](const RestoredProcess& process) {
      return process.image->pid() == entry.pgrp() && !process.image->zombie;
    });
    const std::string name = "the daemon of an autofs mount, pid " + std::to_string(entry.pgrp());
    if (daemon == processes.end()) return DataLoss(name + ", is not in the images");
    RETURN_IF_ERROR(Annotate(Connect(*daemon, root.get(), entry), name));
  }
  return OkStatus();
}

}  // namespace stasis::engine
