// Source  proc_pid_smaps(5), fs/proc/task_mmu.c (show_smap_vma_flags), mm/shmem.c; tested on 6.18
// Rule    Anonymous shared memory, memfds and System V segments are files of the kernel's own
//         tmpfs. A path like theirs on another device is just a file of that name.
// Rule    [vvar_vclock] was part of [vvar] before Linux 6.13; images know one area. Its pages are
//         the kernel's.
#include "engine/memory/dump_areas.h"

#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <bit>
#include <cerrno>
#include <initializer_list>
#include <utility>

#include "engine/base/unique_fd.h"
#include "engine/files/memfd.h"

namespace stasis::engine {
namespace {

// Linux 6.11; not in Debian 12's headers.
constexpr std::uint32_t kMapDroppable = 8;

struct Refusal {
  std::string_view flag;
  const char* what;
};
constexpr Refusal kRefused[] = {
    {"um", "memory under userfaultfd"},
    {"uw", "memory under userfaultfd"},
    {"ui", "memory under userfaultfd"},
    {"ss", "a shadow stack"},
    {"io", "device memory"},
    {"pf", "device memory"},
};

struct Advice {
  std::string_view flag;
  int number;
};
constexpr Advice kAdvices[] = {
    {"rr", MADV_RANDOM},   {"sr", MADV_SEQUENTIAL}, {"dc", MADV_DONTFORK}, {"mg", MADV_MERGEABLE},
    {"hg", MADV_HUGEPAGE}, {"nh", MADV_NOHUGEPAGE}, {"dd", MADV_DONTDUMP}, {"wf", MADV_WIPEONFORK},
};

Status Refuse(const Vma& vma, pid_t ns_pid, std::string_view what) {
  const std::string path = vma.path.empty() ? "" : " (" + vma.path + ")";
  return Unimplemented(absl::StrCat("pid ", ns_pid, " memory at ", absl::Hex(vma.start), "-",
                                    absl::Hex(vma.end), path, ": ", std::string(what),
                                    " cannot be checkpointed"));
}

bool IsVvar(const Vma& vma) { return vma.path == "[vvar]" || vma.path == "[vvar_vclock]"; }

// Anonymous memory of huge pages is a file of the kernel's own hugetlbfs. A private area without the right to
// write could not be filled: hugetlb knows no FOLL_FORCE (mm/gup.c).
Result<std::uint32_t> StatusOfHuge(const Vma& vma, pid_t ns_pid) {
  if (vma.shared && vma.path.starts_with("/SYSV")) {
    return kAreaRegular | kAreaAnonShared | kAreaSystemV;
  }
  const bool memfd = vma.path.starts_with("/memfd:");
  if (!memfd && vma.path != "/anon_hugepage (deleted)") {
    return Refuse(vma, ns_pid, "a file of huge pages");
  }
  if (vma.shared) return kAreaRegular | (memfd ? kAreaMemfd | kAreaFileShared : kAreaAnonShared);
  if ((vma.prot & PROT_WRITE) == 0) return Refuse(vma, ns_pid, "read-only huge pages");
  return kAreaRegular | (memfd ? kAreaMemfd | kAreaFilePrivate : kAreaAnonPrivate);
}

Result<std::uint32_t> StatusOf(const Vma& vma, pid_t ns_pid, dev_t shmem_device) {
  if (vma.path == "[vsyscall]") return kAreaVsyscall | kAreaAnonPrivate;
  if (IsVvar(vma)) return kAreaRegular | kAreaAnonPrivate | kAreaVvar;
  // Before Linux 6.10 as device memory.
  if (vma.path == kRingLink) return kAreaRegular | kAreaFileShared | kAreaPlugin;
  for (const Refusal& refusal : kRefused) {
    if (vma.Has(refusal.flag)) return Refuse(vma, ns_pid, refusal.what);
  }
  if (vma.protection_key != 0) return Refuse(vma, ns_pid, "memory with a protection key");
  if (vma.Has("ht")) return StatusOfHuge(vma, ns_pid);
  if (vma.path == "[vdso]") return kAreaRegular | kAreaAnonPrivate | kAreaVdso;
  if (IsAnonymous(vma)) {
    return kAreaRegular | kAreaAnonPrivate | (vma.path == "[heap]" ? kAreaHeap : 0u);
  }
  if (makedev(vma.dev_major, vma.dev_minor) == shmem_device) {
    const bool anonymous = IsZeroFile(vma.path) || vma.path.starts_with("[anon_shmem:");
    if (vma.shared && anonymous) return kAreaRegular | kAreaAnonShared;
    if (vma.shared && vma.path.starts_with("/SYSV")) {
      return kAreaRegular | kAreaAnonShared | kAreaSystemV;
    }
    if (!IsZeroFile(vma.path) && !vma.path.starts_with("/memfd:"))
      return Refuse(vma, ns_pid, "memory of an unknown kind");
    return kAreaRegular | kAreaMemfd | (vma.shared ? kAreaFileShared : kAreaFilePrivate);
  }
  if (vma.path.starts_with("socket:[")) return kAreaRegular | kAreaSocket;
  if (!vma.path.starts_with('/') || vma.inode == 0) {
    return Refuse(vma, ns_pid, "memory of an unknown kind");
  }
  if (vma.path == "/[aio] (deleted)") return kAreaRegular | kAreaAioRing;
  if (vma.path == "/secretmem (deleted)") return Refuse(vma, ns_pid, "secret memory");
  return kAreaRegular | (vma.shared ? kAreaFileShared : kAreaFilePrivate);
}

std::uint32_t MapFlags(const Vma& vma, std::uint32_t status) {
  std::uint32_t flags = vma.shared ? MAP_SHARED : MAP_PRIVATE;
  if (vma.Has("dp")) flags = kMapDroppable;
  if ((status & (kAreaFilePrivate | kAreaFileShared | kAreaSocket)) == 0) flags |= MAP_ANONYMOUS;
  if (vma.Has("gd")) flags |= MAP_GROWSDOWN;
  if (vma.Has("ht")) {
    const auto shift = static_cast<std::uint32_t>(std::countr_zero(vma.kernel_page_size));
    flags |= MAP_HUGETLB | shift << MAP_HUGE_SHIFT;
  }
  if (vma.Has("lo")) flags |= MAP_LOCKED;
  if (vma.Has("nr")) flags |= MAP_NORESERVE;
  return flags;
}

image::VmaEntry ToEntry(const Vma& vma, std::uint32_t status) {
  image::VmaEntry entry;
  entry.set_start(vma.start);
  entry.set_end(vma.end);
  const bool file = (status & (kAreaFilePrivate | kAreaFileShared | kAreaSocket)) != 0;
  const bool object = (status & kAreaAnonShared) != 0;
  entry.set_pgoff(file || object ? vma.offset : 0);
  entry.set_shmid(object ? vma.inode : 0);
  entry.set_prot(vma.prot);
  entry.set_flags(MapFlags(vma, status));
  entry.set_status(status);
  entry.set_fd(-1);
  // Attached with SHM_RDONLY, or not.
  if ((status & kAreaSystemV) != 0) entry.set_fdflags(vma.Has("mw") ? O_RDWR : O_RDONLY);
  std::uint64_t advices = 0;
  for (const Advice& advice : kAdvices) {
    if (vma.Has(advice.flag)) advices |= std::uint64_t{1} << advice.number;
  }
  // The kernel's own areas have "dd" by themselves, and refuse madvise.
  const bool own = (status & (kAreaVvar | kAreaVdso | kAreaVsyscall)) != 0;
  if (advices != 0 && !own) entry.set_madv(advices);
  if (vma.Has("sl") && !own) entry.set_stasis_sealed(true);
  return entry;
}

}  // namespace

void MapZeroFiles(std::vector<Area>& areas, const std::set<std::uint64_t>& inodes) {
  for (Area& area : areas) {
    // Other kinds have numbers of their own.
    if (!area.Is(kAreaAnonShared) || area.Is(kAreaSystemV) || area.vma.Has("ht")) continue;
    if (!inodes.contains(area.vma.inode)) continue;
    area.entry.set_status(kAreaRegular | kAreaMemfd | kAreaFileShared);
    area.entry.set_flags(area.entry.flags() & ~std::uint32_t{MAP_ANONYMOUS});
  }
}

bool IsAnonymous(const Vma& vma) {
  if (vma.shared || vma.inode != 0) return false;
  return vma.path.empty() || vma.path == "[heap]" || vma.path.starts_with("[stack") ||
         vma.path.starts_with("[anon:");
}

std::string Area::LinkName() const {
  return absl::StrCat("map_files/", absl::Hex(vma.start), "-", absl::Hex(vma.end));
}

namespace {

// What they say is in the entry, and of a thousand processes they take some MiB. A few are asked for later.
void ForgetMostFlags(Vma& vma) { vma.flags.KeepOnly({"dp", "ht", "lo"}); }

}  // namespace

Result<std::vector<Area>> ClassifyAreas(std::vector<Vma> vmas, pid_t ns_pid, dev_t shmem_device) {
  std::vector<Area> areas;
  areas.reserve(vmas.size());  // of each of a thousand processes
  for (Vma& vma : vmas) {
    ASSIGN_OR_RETURN(const std::uint32_t status, StatusOf(vma, ns_pid, shmem_device));
    const bool continues_vvar = IsVvar(vma) && !areas.empty() && areas.back().Is(kAreaVvar) &&
                                areas.back().vma.end == vma.start;
    if (continues_vvar) {
      areas.back().vma.end = vma.end;
      areas.back().entry.set_end(vma.end);
      continue;
    }
    image::VmaEntry entry = ToEntry(vma, status);
    ForgetMostFlags(vma);
    areas.push_back({.vma = std::move(vma), .entry = std::move(entry)});
  }
  return areas;
}

Result<dev_t> ShmemDevice() {
  const UniqueFd fd(::memfd_create("stasis-device", MFD_CLOEXEC));
  if (!fd) {
    return SyscallError(errno, "memfd_create");
  }
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) {
    return SyscallError(errno, "fstat of a memfd");
  }
  return st.st_dev;
}

}  // namespace stasis::engine
