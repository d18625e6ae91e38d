// The order of it: everything is read and checked, then process by process, parents before their children
// are forked, the old memory goes, the vDSO finds its place, areas are mapped, filled, and get what must
// wait for their content.
#include "engine/memory/restore_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/image/image_file.h"
#include "engine/memory/aio_ring.h"
#include "engine/memory/inheritance.h"
#include "engine/memory/lazy_pages.h"
#include "engine/memory/page_installer.h"
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
  MemoryLayout layout;
  MmAddresses addresses = {};
  PageSet pages;
};

bool HasContent(const AreaImage& area) {
  // Shared memory has files of its own, and a shared file is in the file system.
  return area.kind == AreaImage::Kind::kAnonymous || area.kind == AreaImage::Kind::kPrivateFile;
}

void AddTarget(std::vector<PageTarget>& targets, const AddressRange& range, PageTarget::Way way) {
  if (!range.empty()) targets.push_back({.range = range, .address = range.start, .way = way});
}

// Where the pages of a process may go, by rising address. In `inherited` areas those that its parent has
// too are compared first. `installable`: areas that get pages by a PageInstaller.
std::vector<PageTarget> TargetsOf(const MemoryLayout& layout, const Inheritance& inherited,
                                  const std::vector<AddressRange>& installable = {}) {
  std::vector<PageTarget> targets;
  for (const AreaImage& area : layout.areas) {
    if (!HasContent(area)) continue;
    const auto way =
        area.droppable ? PageTarget::Way::kSkip
        : std::ranges::binary_search(installable, area.range.start, {}, &AddressRange::start)
            ? PageTarget::Way::kInstall
        : (area.prot & PROT_WRITE) ? PageTarget::Way::kCopy
                                   : PageTarget::Way::kForce;
    std::uint64_t at = area.range.start;
    for (const AddressRange& page_run : inherited.PagesIn(area.range)) {
      AddTarget(targets, {at, page_run.start}, way);
      AddTarget(targets, page_run, PageTarget::Way::kUpdate);
      at = page_run.end;
    }
    AddTarget(targets, {at, area.range.end}, way);
  }
  AddTarget(targets, layout.vdso, PageTarget::Way::kSkip);
  std::ranges::sort(targets, {}, [](const PageTarget& target) { return target.range.start; });
  return targets;
}

Result<MemoryPlan> MakePlan(const ProcessImage& process, const ZeroFiles& zero_files,
                            const AddressRange& ours, const ImageSource& source) {
  MemoryPlan plan;
  ASSIGN_OR_RETURN(plan.layout, ReadLayout(process.mm, zero_files, ours));
  ASSIGN_OR_RETURN(plan.addresses, ReadMmAddresses(process.mm));
  ASSIGN_OR_RETURN(
      plan.pages,
      ReadPageSet(source, ImageName("pagemap", static_cast<std::uint64_t>(process.pid()))));
  RETURN_IF_ERROR(CheckPlaces(plan.pages, TargetsOf(plan.layout, {})));
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

Status Named(const Status& status, const ProcessImage& process) {
  return Annotate(status, "pid " + std::to_string(process.pid()));
}

class Restorer : public MemoryRestorer {
 public:
  Restorer(const ImageSource& source, OpenFile open_file, MemoryProgress& progress, LazyPages* lazy)
      : source_(source), open_file_(std::move(open_file)), progress_(progress), lazy_(lazy) {}

  Status Plan(std::span<const ProcessImage* const> processes, const CheckpointImages& images,
              const AddressRange& ours) {
    ASSIGN_OR_RETURN(const ZeroFiles zero_files, ReadZeroFiles(images, source_));
    for (const ProcessImage* process : processes) {
      parents_.insert(process->tree.ppid());
      if (process->zombie) continue;
      Result<MemoryPlan> plan = MakePlan(*process, zero_files, ours, source_);
      RETURN_IF_ERROR(Named(plan.status(), *process));
      RETURN_IF_ERROR(Named(CollectSharedObjects(plan->layout, objects_), *process));
      plans_.emplace(process, *std::move(plan));
    }
    const std::uint32_t ns = processes.front()->ids.ipc_ns_id();  // of all of them
    ASSIGN_OR_RETURN(
        const std::vector<image::IpcShmEntry> segments,
        ReadRecords<image::IpcShmEntry>(source_, ImageName("ipcns-shm", ns), "ipcns-shm"));
    ASSIGN_OR_RETURN(segments_, SegmentRestorer::Create(segments));
    return ReadSharedPages(source_, objects_);
  }

  Status Restore(RestoredProcess& process, const ProcessImage* forked_from) override {
    const auto parent = plans_.find(forked_from);
    return Named(RestoreOne(process, plans_.at(process.image),
                            parent == plans_.end() ? nullptr : &parent->second),
                 *process.image);
  }

  Status Finish() override { return first_ == 0 ? OkStatus() : segments_.Finish(first_); }

 private:
  Status RestoreOne(RestoredProcess& process, const MemoryPlan& plan, const MemoryPlan* parent) {
    ASSIGN_OR_RETURN(const LiveVdso vdso, FindVdso(process));
    ASSIGN_OR_RETURN(const VdsoPlan place,
                     PlanVdso(process, vdso, plan.layout, plan.pages, source_));
    Inheritance inherited;
    // Where the vDSO has to move, nothing may be in its way.
    if (parent != nullptr && vdso.whole() == place.place) {
      inherited = Inheritance(parent->layout, parent->pages, plan.layout);
    }
    RETURN_IF_ERROR(ClearMemory(process, vdso.whole(), inherited.areas()));
    RETURN_IF_ERROR(PlaceVdso(process, vdso, plan.layout, place));
    const LazyPlan lazy = PlanLater(process, plan, inherited);
    RETURN_IF_ERROR(SetHugePages(process, !lazy.empty() || process.image->mm.thp_disabled()));
    if (std::exchange(first_, first_ == 0 ? process.pid : first_) == 0) {
      RETURN_IF_ERROR(segments_.MakeAll(process, source_, [this](std::uint64_t n) { Count(n); }));
    }
    RETURN_IF_ERROR(MakeObjects(process, plan));
    RETURN_IF_ERROR(MapAreas(process, plan, inherited));
    RETURN_IF_ERROR(DropPages(process, inherited, plan.pages));
    if (lazy.empty()) {
      RETURN_IF_ERROR(Fill(process, plan.layout, plan.pages, inherited));
    } else {
      RETURN_IF_ERROR(Fill(process, plan.layout, lazy.at_once, inherited));
      RETURN_IF_ERROR(lazy_->Register(process, lazy));
      RETURN_IF_ERROR(SetHugePages(process, process.image->mm.thp_disabled()));
    }
    RETURN_IF_ERROR(FinishAreas(process, plan.layout, progress_.notes));
    for (const AddressRange& ring : plan.layout.aio_rings) {
      RETURN_IF_ERROR(RestoreAioRing(process, ring.start, ring.size()));
    }
    return SetMmAddresses(*process.remote, plan.addresses);
  }

  // A child has what its parent has at its fork, so a parent's memory is all there before.
  LazyPlan PlanLater(const RestoredProcess& process, const MemoryPlan& plan,
                     const Inheritance& inherited) const {
    if (lazy_ == nullptr || parents_.contains(process.image->tree.pid())) return {};
    return PlanLazyPages(plan.layout, plan.pages, inherited.areas());
  }

  // Before memory is filled, which would make the huge pages that the program does not want.
  static Status SetHugePages(RestoredProcess& process, bool off) {
    return process.remote
        ->Call("prctl PR_SET_THP_DISABLE", SYS_prctl, PR_SET_THP_DISABLE, off ? 1 : 0, 0, 0, 0)
        .status();
  }

  Status MakeObjects(RestoredProcess& process, const MemoryPlan& plan) {
    for (const AreaImage& area : plan.layout.areas) {
      if (area.kind != AreaImage::Kind::kSharedAnonymous) continue;
      SharedObject& object = objects_.at(area.object);
      if (object.fd) continue;
      RETURN_IF_ERROR(Annotate(
          MakeSharedObject(process, source_, object, [this](std::uint64_t n) { Count(n); }),
          "shared memory " + std::to_string(area.object)));
    }
    return OkStatus();
  }

  Status MapAreas(RestoredProcess& process, const MemoryPlan& plan, const Inheritance& inherited) {
    AreaMapper mapper(process, objects_, segments_,
                      [&](std::uint32_t id, int flags) { return open_file_(process, id, flags); });
    for (const AreaImage& area : plan.layout.areas) {
      if (!inherited.Has(area)) RETURN_IF_ERROR(mapper.Map(area));
    }
    return mapper.Finish();
  }

  Status Fill(RestoredProcess& process, const MemoryLayout& layout, const PageSet& pages,
              const Inheritance& inherited) {
    ASSIGN_OR_RETURN(const UniqueFd mem, OpenAt(process.proc.get(), "mem", O_RDWR));
    const auto count = [this](std::uint64_t pages_done) { Count(pages_done); };
    const std::vector<AddressRange> areas =
        InstallableAreas(layout, pages, inherited.areas(), process.image->mm.thp_disabled());
    if (!areas.empty()) {
      const Result<PageInstaller> installer = PageInstaller::Make(process, areas);
      if (installer.ok()) {
        return WritePages(source_, pages, TargetsOf(layout, inherited, areas), process.pid,
                          mem.get(), count, &*installer);
      }
    }
    return WritePages(source_, pages, TargetsOf(layout, inherited), process.pid, mem.get(), count);
  }

  void Count(std::uint64_t pages) {
    progress_.pages += pages;
    if (progress_.report) progress_.report(progress_.pages);
  }

  const ImageSource& source_;
  const OpenFile open_file_;
  MemoryProgress& progress_;
  LazyPages* const lazy_;
  std::set<std::uint32_t> parents_;  // pids
  std::map<const ProcessImage*, MemoryPlan> plans_;
  pid_t first_ = 0;  // the first that was restored
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

Result<std::unique_ptr<MemoryRestorer>> MemoryRestorer::Create(
    std::span<const ProcessImage* const> processes, const CheckpointImages& images,
    const ImageSource& source, std::uint64_t area_address, OpenFile open_file,
    MemoryProgress& progress, LazyPages* lazy) {
  auto restorer = std::make_unique<Restorer>(source, std::move(open_file), progress, lazy);
  RETURN_IF_ERROR(
      restorer->Plan(processes, images, {area_address, area_address + RemoteArea::kBytes}));
  return restorer;
}

}  // namespace stasis::engine
