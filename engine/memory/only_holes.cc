// Source  io_uring_get_unmapped_area() in io_uring/memmap.c, __get_unmapped_area() in mm/mmap.c; tested on 6.18
// Rule    A ring of io_uring is mapped without an address, also by MAP_FIXED and mremap(2): else EINVAL. Then the kernel
//         takes a hole that is large enough, where there is just one: that. So all others are filled for the moment.
// Rule    Holes below mmap_min_addr are never taken.
#include "engine/memory/only_holes.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <string>

#include "engine/proc/maps.h"
#include "engine/tracee/call_batch.h"

namespace stasis::engine {
namespace {

// What lies between `busy`, from `low` on.
std::vector<AddressRange> HolesBetween(const std::vector<Vma>& busy, std::uint64_t low) {
  std::vector<AddressRange> holes;
  std::uint64_t at = low;
  for (const Vma& vma : busy) {
    if (vma.start >= kTaskSize) break;
    if (vma.start > at) holes.push_back({at, vma.start});
    at = std::max(at, vma.end);
  }
  if (at < kTaskSize) holes.push_back({at, kTaskSize});
  return holes;
}

class Filler {
 public:
  explicit Filler(RestoredProcess& process) : process_(process) {}

  // Also the places that are wanted: each is a hole only when its turn comes.
  Status Fill() {
    ASSIGN_OR_RETURN(const std::uint64_t low, VmSysctl("mmap_min_addr"));
    ASSIGN_OR_RETURN(const std::vector<Vma> busy, ReadMaps(process_.proc.get()));
    holes_ = HolesBetween(busy, std::max(low, kPageBytes));
    CallBatch batch;
    for (const AddressRange& hole : holes_) {
      batch.Add("mmap of a hole", SYS_mmap,
                {hole.start, hole.size(), PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                 static_cast<std::uint64_t>(-1), 0});
    }
    return Run(batch);
  }

  Status Map(const ChosenMapping& mapping) {
    const AddressRange& range = mapping.range;
    const std::string name = "mmap " + ToText(range);
    const bool is_free =
        std::ranges::any_of(holes_, [&](const AddressRange& hole) { return hole.Contains(range); });
    if (!is_free) return AlreadyExists(name + ": something is there");
    RemoteSyscalls& remote = *process_.remote;
    RETURN_IF_ERROR(
        remote.Call("munmap of a hole", SYS_munmap, range.start, range.size()).status());
    ASSIGN_OR_RETURN(const std::uint64_t start,
                     remote.Call(name, SYS_mmap, 0, range.size(), mapping.prot,
                                 MAP_SHARED | MAP_POPULATE, mapping.fd, mapping.offset));
    taken_.push_back(range);
    return start == range.start ? OkStatus()
                                : Internal(name + ": the kernel chose another address");
  }

  Status Empty() {
    std::ranges::sort(taken_, {}, &AddressRange::start);
    CallBatch batch;
    for (const AddressRange& hole : holes_) {
      std::uint64_t at = hole.start;
      for (const AddressRange& taken : taken_) {
        if (!hole.Contains(taken)) continue;
        AddUnmap(batch, {at, taken.start});
        at = taken.end;
      }
      AddUnmap(batch, {at, hole.end});
    }
    return Run(batch);
  }

 private:
  static void AddUnmap(CallBatch& batch, const AddressRange& range) {
    if (!range.empty()) batch.Add("munmap of a hole", SYS_munmap, {range.start, range.size()});
  }

  Status Run(CallBatch& batch) {
    if (batch.size() == 0) return OkStatus();
    ASSIGN_OR_RETURN(const OneRun how, RunOf(process_));
    RETURN_IF_ERROR(batch.Begin(*process_.remote, how));
    return batch.End();
  }

  RestoredProcess& process_;
  std::vector<AddressRange> holes_, taken_;
};

}  // namespace

Status MapIntoHoles(RestoredProcess& process, const std::vector<ChosenMapping>& mappings) {
  if (mappings.empty()) return OkStatus();
  Filler filler(process);
  RETURN_IF_ERROR(filler.Fill());
  for (const ChosenMapping& mapping : mappings) RETURN_IF_ERROR(filler.Map(mapping));
  return filler.Empty();
}

}  // namespace stasis::engine
