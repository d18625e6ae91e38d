// What processes run, are in and map: files without a descriptor, known by links in /proc/PID.
//
// Source  proc_pid_exe(5), proc_pid_cwd(5), proc_pid_map_files(5); tested on 6.18
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "engine/base/io.h"
#include "engine/dump_files.h"
#include "engine/files/description.h"
#include "engine/files/io_uring.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {

namespace {

int MountIdOf(const OpenFile& file) {
  const Result<Fdinfo> info = ParseFdinfo(file.fdinfo);
  return info.ok() ? info->mnt_id : -1;
}

}  // namespace

Status FileDumper::SetNamespaces(const NamespaceDumper& namespaces) {
  namespaces_ = &namespaces;
  kept_links_.SetUsers(namespaces.ids());
  for (const NamespaceDumper::OtherMounts& one : namespaces.other_mounts()) {
    OtherMounts& other = other_mounts_.emplace_back();
    other.number = one.number;
    ASSIGN_OR_RETURN(other.root, OpenAt(one.process->proc.get(), "root", O_PATH | O_DIRECTORY));
    for (const image::MntEntry& mount : one.mounts) {
      other.mounts.insert(static_cast<int>(mount.mnt_id()));
    }
  }
  elsewhere_ = namespaces.elsewhere();
  if (other_mounts_.empty()) return OkStatus();
  if (!root_prefix_.empty()) return Unimplemented("its root directory is not that of its mounts");
  return OkStatus();
}

const FileDumper::OtherMounts* FileDumper::OtherOf(int mnt_id) const {
  const auto found = std::ranges::find_if(
      other_mounts_, [mnt_id](const OtherMounts& one) { return one.mounts.contains(mnt_id); });
  return found == other_mounts_.end() ? nullptr : &*found;
}

const FileDumper::OtherMounts* FileDumper::OtherOfProcess(pid_t pid) const {
  const auto number = elsewhere_.find(pid);
  if (number == elsewhere_.end()) return nullptr;
  const auto found = std::ranges::find(other_mounts_, number->second, &OtherMounts::number);
  return found == other_mounts_.end() ? nullptr : &*found;
}

int FileDumper::RootOf(const OpenFile& file) const {
  if (other_mounts_.empty()) return root_.get();
  const OtherMounts* other = OtherOf(MountIdOf(file));
  // Sockets and what watches files are on mounts of the kernel's own.
  const bool has_path = file.link.starts_with('/');
  if (other == nullptr && !has_path) other = OtherOfProcess(file.pid);
  return other == nullptr ? root_.get() : other->root.get();
}

int FileDumper::OtherMountOf(const OpenFile& file) const {
  const int mount = MountIdOf(file);
  return OtherOf(mount) == nullptr ? -1 : mount;
}

// A process takes its directories from its own mount namespace.
Status FileDumper::CheckFolder(const FrozenProcess& process, const std::string& path,
                               const OpenFile& file) const {
  if (other_mounts_.empty() || (path != "cwd" && path != "root")) return OkStatus();
  if (OtherOf(MountIdOf(file)) == OtherOfProcess(process.pid)) return OkStatus();
  return Unimplemented("pid " + std::to_string(process.ns_pid) + " " + path + " (" + file.link +
                       "): it is in another mount namespace than its process");
}

Result<std::uint32_t> FileDumper::AddLink(const FrozenProcess& process, const std::string& path,
                                          std::uint32_t flags) {
  OpenFile file;
  file.pid = process.pid;
  file.ns_pid = process.ns_pid;
  file.flags = flags;
  ASSIGN_OR_RETURN(file.link, ReadLinkAt(process.proc.get(), path));
  file.link = InRoot(std::move(file.link));
  // Most processes have the program and the directories of another.
  struct stat st = {};
  if (other_mounts_.empty() && ::fstatat(process.proc.get(), path.c_str(), &st, 0) == 0) {
    const auto known = links_.find(LinkKey(st.st_dev, st.st_ino, file.link, flags, 0));
    if (known != links_.end()) return known->second;
  }
  ASSIGN_OR_RETURN(file.borrowed, OpenAt(process.proc.get(), path, O_PATH));
  RETURN_IF_ERROR(Describe(file));
  const bool memory_device = S_ISCHR(file.st.st_mode) && major(file.st.st_rdev) == 1;  // /dev/zero
  if (leased_.contains({file.st.st_dev, file.st.st_ino})) {
    return Unimplemented("pid " + std::to_string(process.ns_pid) + " " + path + " (" + file.link +
                         "): it is under a lease, which looking at it would break");
  }
  const bool has_content = S_ISREG(file.st.st_mode) || S_ISDIR(file.st.st_mode) || memory_device;
  if (file.fs_magic == PROC_SUPER_MAGIC) {
    file.flags |= O_PATH;  // of a dead process it cannot be opened otherwise
  } else if (has_content) {
    // Its content may have to be saved. Other things could act on being opened.
    ASSIGN_OR_RETURN(file.borrowed, OpenAt(process.proc.get(), path, O_RDONLY));
  }
  ASSIGN_OR_RETURN(file.fdinfo, OurFdinfo(file.borrowed.get()));
  const OtherMounts* const other = OtherOf(MountIdOf(file));
  const LinkKey key(file.st.st_dev, file.st.st_ino, file.link, flags,
                    other == nullptr ? 0 : other->number);
  if (const auto known = links_.find(key); known != links_.end()) return known->second;
  RETURN_IF_ERROR(CheckFolder(process, path, file));

  file.id = NewFileId();
  const FileKind& kind = kMemfd.owns(file) ? kMemfd : kRegularFile;
  Result<image::FileEntry> entry = kind.dump(file, *this);
  if (!entry.ok()) {
    return Annotate(entry.status(), "pid " + std::to_string(process.ns_pid) + " " + path);
  }
  AddEntry(*std::move(entry));
  return links_[key] = file.id;
}

namespace {

// The link's own permissions tell how the file was open when it was mapped: of a private mapping it makes no
// difference, whose pages may be written once they are the process's own.
Result<std::uint32_t> FlagsOfMapping(const FrozenProcess& process, const Area& area) {
  if (!area.vma.shared) return O_RDONLY;
  const std::string link = area.LinkName();
  struct stat st = {};
  if (::fstatat(process.proc.get(), link.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
    return SyscallError(errno, "stat " + link);
  }
  const bool read = (st.st_mode & S_IRUSR) != 0, write = (st.st_mode & S_IWUSR) != 0;
  return read && write ? O_RDWR : write ? O_WRONLY : O_RDONLY;
}

}  // namespace

// Only rings of packet sockets are restored. Rule: they are mapped whole, the one for receiving first
// (packet_mmap() in net/packet/af_packet.c).
Status FileDumper::AddSocketMapping(Area& area) {
  const auto file = std::ranges::find(files_, area.vma.path, &OpenFile::link);
  const auto entry = file == files_.end()
                         ? entries_.end()
                         : std::ranges::find(entries_, file->id, &image::FileEntry::id);
  if (entry == entries_.end() || !entry->has_psk()) {
    return Unimplemented("memory of " + area.vma.path + " cannot be checkpointed");
  }
  std::uint64_t size = 0;
  for (const image::PacketRing& ring : {entry->psk().rx_ring(), entry->psk().tx_ring()}) {
    size += std::uint64_t{ring.block_size()} * ring.block_nr();
  }
  if (area.vma.offset != 0 || area.vma.end - area.vma.start != size) {
    return Unimplemented("a part of the rings of " + area.vma.path + " cannot be checkpointed");
  }
  area.entry.set_shmid(file->id);
  Note(NameOf(*file) +
       ": frames in its mapped ring will be gone, and new ones begin at the ring's first place");
  return OkStatus();
}

Status FileDumper::AddMapping(const FrozenProcess& process, Area& area) {
  if (area.Is(kAreaSocket)) return AddSocketMapping(area);
  if (area.Is(kAreaPlugin)) {
    ASSIGN_OR_RETURN(const OpenFile* const ring, rings_.RingOf(files_, process.pid, area.vma));
    area.entry.set_shmid(ring->id);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const std::uint32_t flags, FlagsOfMapping(process, area));
  // Most files are mapped in several areas and processes.
  const LinkKey key(makedev(area.vma.dev_major, area.vma.dev_minor), area.vma.inode, area.vma.path,
                    flags, 0);
  // Equal texts lead to mounts of several namespaces.
  auto known = other_mounts_.empty() ? mappings_.find(key) : mappings_.end();
  if (known == mappings_.end()) {
    ASSIGN_OR_RETURN(const std::uint32_t id, AddLink(process, area.LinkName(), flags));
    known = mappings_.insert_or_assign(key, id).first;
  }
  area.entry.set_shmid(known->second);
  area.entry.set_fdflags(flags);
  return OkStatus();
}

}  // namespace stasis::engine
