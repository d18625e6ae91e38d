// The order of it: everything is read and checked, then process by process the old memory goes, the
// vDSO finds its place, areas are mapped, filled, and get what must wait for their content.
#include "engine/memory/restore_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/image/image_file.h"
#include "engine/memory/restore_areas.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_mm.h"
#include "engine/memory/restore_pages.h"
#include "engine/memory/restore_vdso.h"

namespace stasis::engine {
namespace {

// Where our area may lie: far above what is linked to a fixed address (4 MiB, its heap behind it), far
// below where programs are loaded (two thirds of TASK_SIZE) and mmap(2) begins (its top).
constexpr AddressRange kOurs = {std::uint64_t{1} << 36, std::uint64_t{5} << 44};
// Kept free on both sides: an area that touches ours could be merged with it, and one that grows
// downwards keeps 256 pages' distance (stack_guard_gap).
constexpr std::uint64_t kDistance = std::uint64_t{2} << 20;

// All that an image says of the memory of one process.
struct MemoryPlan {
  RestoredProcess* process = nullptr;
  MemoryLayout layout;
  MmAddresses addresses = {};
  PageSet pages;
  std::vector<PageTarget> targets;
  LiveVdso vdso;
};

// Where the pages of a process may go, by rising address.
std::vector<PageTarget> TargetsOf(const MemoryLayout& layout) {
  std::vector<PageTarget> targets;
  for (const AreaImage& area : layout.areas) {
    // Shared memory has files of its own, and a shared file is in the file system.
    if (area.kind != AreaImage::Kind::kAnonymous && area.kind != AreaImage::Kind::kPrivateFile)
      continue;
    const auto way = area.droppable             ? PageTarget::Way::kSkip
                     : (area.prot & PROT_WRITE) ? PageTarget::Way::kCopy
                                                : PageTarget::Way::kForce;
    targets.push_back({.range = area.range, .address = area.range.start, .way = way});
  }
  targets.push_back(
      {.range = layout.vdso, .address = layout.vdso.start, .way = PageTarget::Way::kSkip});
  std::sort(targets.begin(), targets.end(),
            [](const PageTarget& a, const PageTarget& b) { return a.range.start < b.range.start; });
  return targets;
}

Result<MemoryPlan> MakePlan(RestoredProcess& process, const ZeroFiles& zero_files,
                            const ImageSource& source) {
  const image::MmEntry& mm = process.image->mm;
  const AddressRange ours = {process.area.address, process.area.address + RemoteArea::kBytes};
  MemoryPlan plan;
  plan.process = &process;
  ASSIGN_OR_RETURN(plan.layout, ReadLayout(mm, zero_files, ours));
  ASSIGN_OR_RETURN(plan.addresses, ReadMmAddresses(mm));
  ASSIGN_OR_RETURN(
      plan.pages,
      ReadPageSet(source, ImageName("pagemap", static_cast<std::uint64_t>(process.image->pid()))));
  plan.targets = TargetsOf(plan.layout);
  RETURN_IF_ERROR(CheckPlaces(plan.pages, plan.targets));
  ASSIGN_OR_RETURN(plan.vdso, FindVdso(process));
  RETURN_IF_ERROR(CheckVdso(process, plan.vdso, plan.layout, plan.pages, source));
  return plan;
}

Status ReadSharedPages(const ImageSource& source, SharedObjects& objects) {
  for (auto& [number, object] : objects) {
    ASSIGN_OR_RETURN(object.pages, ReadPageSet(source, ImageName("pagemap-shmem", number)));
    // What no area shows (any more) still belongs to it: mremap(2) can show it again.
    if (!object.pages.runs.empty()) {
      object.size = std::max(object.size, object.pages.runs.back().end);
    }
  }
  return OkStatus();
}

class MemoryRestorer {
 public:
  using OpenFile = std::function<Result<int>(RestoredProcess&, std::uint32_t, int)>;

  MemoryRestorer(const ImageSource& source, const OpenFile& open_file, MemoryProgress& progress)
      : source_(source), open_file_(open_file), progress_(progress) {}

  Status Plan(std::vector<RestoredProcess>& processes, const CheckpointImages& images) {
    ASSIGN_OR_RETURN(const ZeroFiles zero_files, ReadZeroFiles(images, source_));
    for (RestoredProcess& process : processes) {
      if (process.image->zombie) continue;
      Result<MemoryPlan> plan = MakePlan(process, zero_files, source_);
      RETURN_IF_ERROR(Named(plan.status(), process));
      RETURN_IF_ERROR(Named(CollectSharedObjects(plan->layout, objects_), process));
      plans_.push_back(*std::move(plan));
    }
    const std::uint32_t ns = processes.front().image->ids.ipc_ns_id();  // of all of them
    ASSIGN_OR_RETURN(
        const std::vector<image::IpcShmEntry> segments,
        ReadRecords<image::IpcShmEntry>(source_, ImageName("ipcns-shm", ns), "ipcns-shm"));
    ASSIGN_OR_RETURN(segments_, SegmentRestorer::Create(segments));
    return ReadSharedPages(source_, objects_);
  }

  Status Run() {
    for (MemoryPlan& plan : plans_) RETURN_IF_ERROR(Named(RunOne(plan), *plan.process));
    return plans_.empty() ? OkStatus() : segments_.Finish(plans_.front().process->pid);
  }

 private:
  static Status Named(const Status& status, const RestoredProcess& process) {
    return Annotate(status, "pid " + std::to_string(process.image->pid()));
  }

  Status RunOne(MemoryPlan& plan) {
    RETURN_IF_ERROR(ClearMemory(*plan.process, plan.vdso.whole()));
    RETURN_IF_ERROR(MoveVdso(*plan.process, plan.vdso, plan.layout));
    RETURN_IF_ERROR(SetHugePages(*plan.process));
    RETURN_IF_ERROR(MakeObjects(plan));
    RETURN_IF_ERROR(MapAreas(plan));
    RETURN_IF_ERROR(Fill(plan));
    RETURN_IF_ERROR(FinishAreas(*plan.process, plan.layout, progress_.notes));
    return SetMmAddresses(*plan.process->remote, plan.addresses);
  }

  // Before memory is filled, which would make the huge pages that the program does not want.
  static Status SetHugePages(RestoredProcess& process) {
    const int off = process.image->mm.thp_disabled() ? 1 : 0;
    return process.remote
        ->Call("prctl PR_SET_THP_DISABLE", SYS_prctl, PR_SET_THP_DISABLE, off, 0, 0, 0)
        .status();
  }

  Status MakeObjects(MemoryPlan& plan) {
    for (const AreaImage& area : plan.layout.areas) {
      if (area.kind == AreaImage::Kind::kSystemV) {
        RETURN_IF_ERROR(segments_.Make(*plan.process, area.object, source_,
                                       [this](std::uint64_t n) { Count(n); }));
      }
      if (area.kind != AreaImage::Kind::kSharedAnonymous) continue;
      SharedObject& object = objects_.at(area.object);
      if (object.fd) continue;
      RETURN_IF_ERROR(Annotate(
          MakeSharedObject(*plan.process, source_, object, [this](std::uint64_t n) { Count(n); }),
          "shared memory " + std::to_string(area.object)));
    }
    return OkStatus();
  }

  Status MapAreas(MemoryPlan& plan) {
    AreaMapper mapper(*plan.process, objects_, segments_, [&](std::uint32_t id, int flags) {
      return open_file_(*plan.process, id, flags);
    });
    for (const AreaImage& area : plan.layout.areas) RETURN_IF_ERROR(mapper.Map(area));
    return mapper.Finish();
  }

  Status Fill(MemoryPlan& plan) {
    ASSIGN_OR_RETURN(const UniqueFd mem, OpenAt(plan.process->proc.get(), "mem", O_RDWR));
    return WritePages(source_, plan.pages, plan.targets, plan.process->pid, mem.get(),
                      [this](std::uint64_t pages) { Count(pages); });
  }

  void Count(std::uint64_t pages) {
    progress_.pages += pages;
    if (progress_.report) progress_.report(progress_.pages);
  }

  const ImageSource& source_;
  const OpenFile& open_file_;
  MemoryProgress& progress_;
  std::vector<MemoryPlan> plans_;
  SharedObjects objects_;
  SegmentRestorer segments_;
};

}  // namespace

Result<std::uint64_t> ChooseAreaAddress(const CheckpointImages& images) {
  std::vector<AddressRange> busy;
  for (const ProcessImage& process : images.processes) {
    for (const image::VmaEntry& vma : process.mm.vmas()) {
      // Entries that no program can have are refused later, when the layout is read.
      const std::uint64_t start = std::min(vma.start(), kTaskSize);
      const std::uint64_t end = std::clamp(vma.end(), start, kTaskSize);
      busy.push_back({start - std::min(start, kDistance), end + kDistance});
    }
  }
  const auto gap = FindGap(std::move(busy), RemoteArea::kBytes, kOurs);
  if (!gap) {
    return ResourceExhausted(
        "the programs of the checkpoint fill their address space: no room to restore them");
  }
  return *gap;
}

Status RestoreMemory(
    std::vector<RestoredProcess>& processes, const CheckpointImages& images,
    const ImageSource& source,
    const std::function<Result<int>(RestoredProcess&, std::uint32_t id, int flags)>& open_file,
    MemoryProgress& progress) {
  MemoryRestorer restorer(source, open_file, progress);
  RETURN_IF_ERROR(restorer.Plan(processes, images));
  return restorer.Run();
}

}  // namespace stasis::engine
