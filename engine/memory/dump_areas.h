// The areas of a process's address space: what each is to the images, and which cannot be dumped.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/proc/maps.h"

namespace stasis::engine {

/// Bits of VmaEntry.status.
enum AreaStatus : std::uint32_t {
  kAreaRegular = 0x1,
  kAreaVsyscall = 0x4,
  kAreaVdso = 0x8,
  kAreaHeap = 0x20,
  kAreaFilePrivate = 0x40,
  kAreaFileShared = 0x80,
  kAreaAnonShared = 0x100,
  kAreaAnonPrivate = 0x200,
  kAreaSystemV = 0x400,
  kAreaSocket = 0x800,
  kAreaVvar = 0x1000,
  kAreaAioRing = 0x2000,
  kAreaMemfd = 0x4000,
  kAreaGuard = 0x10000,
  kAreaPlugin = 0x800'0000,  // what CRIU leaves to a plugin; ours are rings of io_uring
};

struct Area {
  Vma vma;
  image::VmaEntry entry;  ///< `shmid` and `fdflags` of a file mapping are still to be set.

  bool Is(AreaStatus status) const { return (entry.status() & status) != 0; }
  bool MapsFile() const { return Is(kAreaFilePrivate) || Is(kAreaFileShared) || Is(kAreaSocket); }
  /// Its name in /proc/PID/map_files.
  std::string LinkName() const;
};

/// The areas of process `ns_pid` (for messages), in rising order; [vvar] and [vvar_vclock] as one.
/// `shmem_device` is the st_dev of memfds and anonymous shared memory. Unimplemented, with pid and
/// area, for what cannot be restored.
Result<std::vector<Area>> ClassifyAreas(std::vector<Vma> vmas, pid_t ns_pid, dev_t shmem_device);

/// Those of `areas` that are anonymous shared memory in `inodes`, which are open as files too or mapped
/// privately, become mappings of files: for the restore to make one of all.
void MapZeroFiles(std::vector<Area>& areas, const std::set<std::uint64_t>& inodes);

/// Private memory without a file.
bool IsAnonymous(const Vma& vma);

/// st_dev of the kernel's own tmpfs, where memfds and anonymous shared memory live.
Result<dev_t> ShmemDevice();

}  // namespace stasis::engine
