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

namespace stasis::engine {

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
  if (::fstatat(process.proc.get(), path.c_str(), &st, 0) == 0) {
    const auto known = links_.find(LinkKey(st.st_dev, st.st_ino, file.link, flags));
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
  const LinkKey key(file.st.st_dev, file.st.st_ino, file.link, flags);
  if (const auto known = links_.find(key); known != links_.end()) return known->second;

  ASSIGN_OR_RETURN(file.fdinfo, OurFdinfo(file.borrowed.get()));
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
  ASSIGN_OR_RETURN(const std::uint32_t flags, FlagsOfMapping(process, area));
  // Most files are mapped in several areas and processes.
  const LinkKey key(makedev(area.vma.dev_major, area.vma.dev_minor), area.vma.inode, area.vma.path,
                    flags);
  auto known = mappings_.find(key);
  if (known == mappings_.end()) {
    ASSIGN_OR_RETURN(const std::uint32_t id, AddLink(process, area.LinkName(), flags));
    known = mappings_.emplace(key, id).first;
  }
  area.entry.set_shmid(known->second);
  area.entry.set_fdflags(flags);
  return OkStatus();
}

}  // namespace stasis::engine
