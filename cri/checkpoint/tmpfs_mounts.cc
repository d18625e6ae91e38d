#include "cri/checkpoint/tmpfs_mounts.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <set>
#include <span>
#include <utility>

#include "cri/restore/container_root.h"
#include "engine/base/io.h"
#include "engine/proc/mountinfo.h"

namespace stasis::cri {
namespace {

using engine::Mount;

// Held in memory, and read while the container stands still.
constexpr std::uint64_t kMaxBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kMaxBytesOfOwn = std::uint64_t{64} << 20;  // each
constexpr std::uint64_t kMaxTarBytes = kMaxBytesOfOwn + (std::uint64_t{64} << 20);

// As the kernel packs it, and as root_dev of the mount in the images is.
std::uint32_t DeviceOf(const Mount& mount) { return mount.dev_major << 20 | mount.dev_minor; }

std::string ImageOf(std::uint32_t device) {
  return "tmpfs-dev-" + std::to_string(device) + ".tar.gz.img";
}

class TmpfsWriter {
 public:
  TmpfsWriter(pid_t pid, UserIds ids, const engine::MountChanges& changes,
              engine::ImageSink& images, std::vector<std::string>& notes)
      : pid_(pid), ids_(std::move(ids)), changes_(changes), images_(images), notes_(notes) {}

  /// Whose mounts are to be written next.
  void LookAt(pid_t pid) { pid_ = pid; }

  Status Write(const Mount& mount) {
    const std::uint32_t device = DeviceOf(mount);
    if (written_.contains(device)) return OkStatus();
    const bool is_own = changes_.made.contains(mount.id);
    const bool is_alone = is_own && !IsUnbindable(mount);
    Result<UniqueFd> folder = is_alone ? OpenMountAlone(pid_, mount) : Open(mount);
    if (is_alone && folder.status().code() == StatusCode::kNotFound) {
      folder = OpenHiddenMount(pid_, mount);
    }
    RETURN_IF_ERROR(folder.status());
    if (!*folder) return OkStatus();
    written_.insert(device);
    const Result<std::string> content =
        archive::ReadTmpfsContent(folder->get(), is_own ? kMaxBytesOfOwn : kMaxBytes, ids_);
    if (content.status().code() == StatusCode::kResourceExhausted && !is_own) {
      notes_.push_back(mount.mountpoint +
                       ": too large for a copy, without which CRIU restores nothing");
      return OkStatus();
    }
    if (content.ok()) return images_.Put(ImageOf(device), *content);
    if (content.status().code() != StatusCode::kResourceExhausted) return content.status();
    return ResourceExhausted(
        Message(content.status()) +
        "; a tmpfs that a process has mounted can be checkpointed with up to " +
        std::to_string(kMaxBytesOfOwn >> 20) + " MiB in it");
  }

  // An unbindable one cannot be looked at alone, so nothing of it may be hidden by what is mounted on it.
  static Status CheckSeen(const Mount& mount, std::span<const Mount> all) {
    if (!IsUnbindable(mount)) return OkStatus();
    const auto on_it = std::ranges::find(all, mount.id, &Mount::parent);
    if (on_it == all.end()) return OkStatus();
    return Unimplemented("a process has mounted " + on_it->fs_type + " at " + on_it->mountpoint +
                         ", on a tmpfs that is unbindable, which cannot be checkpointed");
  }

  Status CheckWritten(const Mount& mount) const {
    if (written_.contains(DeviceOf(mount))) return OkStatus();
    return Unimplemented("a process has mounted tmpfs at " + mount.mountpoint +
                         " and another mount over it, so that its content cannot be checkpointed");
  }

 private:
  static bool IsUnbindable(const Mount& mount) {
    return std::ranges::find(mount.propagation, "unbindable") != mount.propagation.end();
  }

  // Empty where something is mounted over it.
  Result<UniqueFd> Open(const Mount& mount) const {
    ASSIGN_OR_RETURN(UniqueFd folder,
                     OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid_) + "/root" + mount.mountpoint,
                            O_RDONLY | O_DIRECTORY));
    struct stat st = {};
    if (::fstat(folder.get(), &st) != 0) return SyscallError(errno, "fstat");
    if (st.st_dev != makedev(mount.dev_major, mount.dev_minor)) return UniqueFd();
    return folder;
  }

  pid_t pid_;
  const UserIds ids_;
  const engine::MountChanges& changes_;
  engine::ImageSink& images_;
  std::vector<std::string>& notes_;
  std::set<std::uint32_t> written_;
};

Status WriteThose(std::span<const Mount> mounts, TmpfsWriter& writer,
                  const engine::MountChanges& changes) {
  for (const Mount& mount : mounts) {
    const Status written = writer.Write(mount);
    // One that is hidden may be to be seen elsewhere.
    const bool is_hidden =
        written.code() == StatusCode::kNotFound && changes.made.contains(mount.id);
    if (!is_hidden) RETURN_IF_ERROR(Annotate(written, mount.mountpoint));
  }
  return OkStatus();
}

// That nothing of those in `mounts` is missing; `all` are those of the process.
Status CheckThose(std::span<const Mount> mounts, std::span<const Mount> all,
                  const TmpfsWriter& writer, const engine::MountChanges& changes) {
  for (const Mount& mount : mounts) {
    if (!changes.made.contains(mount.id)) continue;
    RETURN_IF_ERROR(writer.CheckWritten(mount));
    RETURN_IF_ERROR(TmpfsWriter::CheckSeen(mount, all));
  }
  return OkStatus();
}

Result<std::vector<Mount>> MountsOf(pid_t pid) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/mountinfo"));
  return engine::ParseMountinfo(text);
}

bool IsWholeTmpfs(const Mount& mount) { return mount.fs_type == "tmpfs" && mount.root == "/"; }

}  // namespace

Status WriteTmpfsMounts(pid_t pid, const std::vector<std::string>& outside,
                        const engine::MountChanges& changes, engine::ImageSink& images,
                        std::vector<std::string>& notes) {
  ASSIGN_OR_RETURN(const std::vector<Mount> all, MountsOf(pid));
  std::vector<Mount> mounts;
  std::ranges::copy_if(all, std::back_inserter(mounts), [&](const Mount& mount) {
    const bool is_outside = !changes.made.contains(mount.id) &&
                            std::ranges::find(outside, mount.mountpoint) != outside.end();
    return IsWholeTmpfs(mount) && !is_outside;
  });
  ASSIGN_OR_RETURN(UserIds ids, UserIds::OfPid(pid));
  TmpfsWriter writer(pid, std::move(ids), changes, images, notes);
  RETURN_IF_ERROR(WriteThose(mounts, writer, changes));
  return CheckThose(mounts, all, writer, changes);
}

Status WriteTmpfsMadeInside(pid_t pid, std::span<const pid_t> others,
                            const engine::MountChanges& changes, engine::ImageSink& images) {
  if (changes.made.empty()) return OkStatus();
  std::vector<pid_t> pids = {pid};
  pids.insert(pids.end(), others.begin(), others.end());
  std::vector<Mount> all;
  std::vector<std::vector<Mount>> each;
  for (const pid_t one : pids) {
    ASSIGN_OR_RETURN(each.emplace_back(), MountsOf(one));
    all.insert(all.end(), each.back().begin(), each.back().end());
  }
  // A copy of what a restore is given is made of that.
  std::set<std::pair<unsigned, unsigned>> given;
  for (const Mount& mount : all) {
    if (!changes.own_root || changes.made.contains(mount.id)) continue;
    given.emplace(mount.dev_major, mount.dev_minor);
  }
  const auto is_other = [&](const Mount& mount) {
    return !IsWholeTmpfs(mount) || !changes.made.contains(mount.id) ||
           given.contains({mount.dev_major, mount.dev_minor});
  };
  std::vector<std::string> none;  // what is too large is refused
  ASSIGN_OR_RETURN(UserIds ids, UserIds::OfPid(pid));
  TmpfsWriter writer(pid, std::move(ids), changes, images, none);
  std::vector<Mount> mounts;
  for (std::size_t i = 0; i < pids.size(); ++i) {
    std::erase_if(each[i], is_other);
    writer.LookAt(pids[i]);
    RETURN_IF_ERROR(WriteThose(each[i], writer, changes));
    mounts.insert(mounts.end(), each[i].begin(), each[i].end());
  }
  return CheckThose(mounts, all, writer, changes);
}

engine::FillTmpfs FillFrom(const engine::ImageSource& images, const archive::TmpfsRights& rights,
                           std::function<void(const std::string&)> note) {
  return [&images, rights, note = std::move(note)](std::uint32_t device, int folder,
                                                   const UserIds& ids) -> Status {
    const std::string name = ImageOf(device);
    ASSIGN_OR_RETURN(const std::string content, images.Get(name, kMaxTarBytes));
    // Nobody makes devices in a user namespace of its own (vfs_mknod() in fs/namei.c asks the first for CAP_MKNOD).
    const archive::TmpfsRights granted = {.devices = rights.devices && ids.are_ours(),
                                          .capabilities = rights.capabilities};
    const auto report = archive::RestoreWholeTmpfs(folder, content, kMaxBytesOfOwn, granted, ids);
    if (!report.ok()) return Annotate(report.status(), name);
    for (const std::string& text : report->notes) note(text);
    return OkStatus();
  };
}

}  // namespace stasis::cri
