#include "engine/dump_segments.h"

#include <linux/magic.h>
#include <linux/shm.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <bit>
#include <cerrno>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/memory/system_v.h"
#include "engine/tasks/dump_tree.h"

namespace stasis::engine {
namespace {

// As shmget(2) takes it, and CRIU writes it.
std::uint32_t HugeSegment(std::uint64_t page_bytes) {
  return SHM_HUGETLB | static_cast<std::uint32_t>(std::countr_zero(page_bytes)) << SHM_HUGE_SHIFT;
}

// Shared memory of small pages and of huge ones is of several file systems.
Status KeepApart(const Area& area, std::map<std::uint64_t, dev_t>& other_memory) {
  if (!area.Is(kAreaAnonShared) || area.Is(kAreaSystemV)) return OkStatus();
  const dev_t device = makedev(area.vma.dev_major, area.vma.dev_minor);
  if (other_memory.emplace(area.vma.inode, device).first->second == device) return OkStatus();
  return Unimplemented("shared memory of two kinds has the same inode number " +
                       std::to_string(area.vma.inode) + "; allocate one of them anew");
}

}  // namespace

Status DumpSegments(std::span<const DumpedProcess> processes, std::span<const int> idle,
                    ImageFileBuilder& segments, MemoryDumper& memory) {
  std::set<std::uint64_t> known;
  std::map<std::uint64_t, dev_t> other_memory;
  for (const DumpedProcess& process : processes) {
    for (const Area& area : process.areas) {
      RETURN_IF_ERROR(Annotate(KeepApart(area, other_memory), Name(*process.frozen)));
      if (!area.Is(kAreaSystemV) || !known.insert(area.vma.inode).second) continue;
      ASSIGN_OR_RETURN(image::IpcShmEntry segment,
                       ReadSegment(process.frozen->pid, static_cast<int>(area.vma.inode)));
      if (area.vma.Has("ht")) segment.set_hugetlb_flag(HugeSegment(area.vma.kernel_page_size));
      RETURN_IF_ERROR(segments.Add(segment));
    }
  }
  const pid_t root = processes.front().frozen->pid;
  for (const int id : idle) {
    const auto number = static_cast<std::uint64_t>(id);
    if (!known.insert(number).second) continue;
    ASSIGN_OR_RETURN(image::IpcShmEntry segment, ReadSegment(root, id));
    ASSIGN_OR_RETURN(UniqueFd content, OpenSegment(root, id));
    struct statfs fs = {};
    if (::fstatfs(content.get(), &fs) != 0) return SyscallError(errno, "fstatfs of a segment");
    if (fs.f_type == HUGETLBFS_MAGIC) {
      segment.set_hugetlb_flag(HugeSegment(static_cast<std::uint64_t>(fs.f_bsize)));
    }
    RETURN_IF_ERROR(segments.Add(segment));
    RETURN_IF_ERROR(memory.AddObject(number, std::move(content)));
  }
  // Their pages are in files that are named by segment, or by inode.
  for (const std::uint64_t id : known) {
    if (!other_memory.contains(id)) continue;
    return Unimplemented("System V segment " + std::to_string(id) +
                         " has the number of another shared memory object");
  }
  return OkStatus();
}

}  // namespace stasis::engine
