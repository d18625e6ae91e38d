// Source  vdso(7), mremap(2); tested on 6.18
// Rule    The vDSO reads its data at a fixed distance, so all parts move by the same way.
// Rule    A special mapping is moved whole or not at all; the kernel then follows with its own idea of
//         where the vDSO is (vdso_mremap() in arch/x86/entry/vdso/vma.c).
// Rule    The data pages are never copied: the kernel writes the time into them.
#include "engine/memory/restore_vdso.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <cstddef>
#include <optional>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/proc/maps.h"
#include "engine/tracee/tracee.h"

namespace stasis::engine {
namespace {

constexpr char kOtherKernel[] =
    "the checkpoint was made on another kernel or processor (the vDSO differs): restore it on a "
    "node "
    "with the same";

// Above any mmap_min_addr in use, vm(5).
constexpr AddressRange kUsable = {std::uint64_t{1} << 20, kTaskSize};

Status MoveBy(RestoredProcess& process, std::vector<AddressRange>& parts, std::uint64_t distance) {
  for (AddressRange& part : parts) {
    // Wraps around for a move downwards.
    const std::uint64_t to = part.start + distance;
    RETURN_IF_ERROR(process.remote
                        ->Call("mremap of the vDSO", SYS_mremap, part.start, part.size(),
                               part.size(), MREMAP_MAYMOVE | MREMAP_FIXED, to)
                        .status());
    part = {to, to + part.size()};
  }
  return OkStatus();
}

}  // namespace

Result<LiveVdso> FindVdso(const RestoredProcess& process) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "maps"));
  ASSIGN_OR_RETURN(const std::vector<Vma> areas, ParseMaps(text));
  LiveVdso live;
  for (const Vma& vma : areas) {
    if (vma.path != "[vvar]" && vma.path != "[vvar_vclock]" && vma.path != "[vdso]") continue;
    const bool follows = live.parts.empty() || live.parts.back().end == vma.start;
    live.parts.push_back({vma.start, vma.end});
    if (!follows) break;
    if (vma.path == "[vdso]" && live.parts.size() > 1) return live;
  }
  if (live.parts.empty()) return live;
  return Unimplemented("the vDSO of this kernel is laid out in a way that is not known");
}

Status CheckVdso(const RestoredProcess& process, const LiveVdso& live, const MemoryLayout& image,
                 const PageSet& pages, const ImageSource& source) {
  if (image.vdso.empty()) return OkStatus();
  if (live.parts.empty()) return Internal("the vDSO is gone before its process was restored");
  if (image.vdso.size() != live.vdso().size() || image.vvar.size() != live.vvar().size() ||
      image.vvar.end != image.vdso.start) {
    return FailedPrecondition(kOtherKernel);
  }
  ASSIGN_OR_RETURN(const std::vector<std::byte> theirs, ReadPages(source, pages, image.vdso));
  if (theirs.empty()) return DataLoss("the checkpoint lacks pages of its vDSO");
  std::vector<std::byte> ours(live.vdso().size());
  RETURN_IF_ERROR(ReadMemory(process.pid, live.vdso().start, ours));
  return ours == theirs ? OkStatus() : FailedPrecondition(kOtherKernel);
}

Status MoveVdso(RestoredProcess& process, const LiveVdso& live, const MemoryLayout& image) {
  if (image.vdso.empty()) {
    for (const AddressRange& part : live.parts) {
      RETURN_IF_ERROR(
          process.remote->Call("munmap of the vDSO", SYS_munmap, part.start, part.size()).status());
    }
    return OkStatus();
  }
  const AddressRange target = {image.vvar.start, image.vdso.end};
  AddressRange now = live.whole();
  if (now == target) return OkStatus();
  std::vector<AddressRange> parts = live.parts;
  if (now.Overlaps(target)) {
    // MREMAP_FIXED unmaps what is at the new place, and may not overlap the old one: take a detour.
    const AddressRange area = {process.area.address, process.area.address + RemoteArea::kBytes};
    const auto detour = FindGap({now, target, area}, now.size(), kUsable);
    if (!detour) return ResourceExhausted("no room to move the vDSO");
    RETURN_IF_ERROR(MoveBy(process, parts, *detour - now.start));
    now = {*detour, *detour + now.size()};
  }
  return MoveBy(process, parts, target.start - now.start);
}

}  // namespace stasis::engine
