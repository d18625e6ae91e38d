// Source  vdso(7), mremap(2); tested on 6.18
// Rule    The vDSO reads its data at a fixed distance, so all parts move by the same way.
// Rule    A special mapping is moved whole or not at all; the kernel then follows with its own idea of
//         where the vDSO is (vdso_mremap() in arch/x86/entry/vdso/vma.c).
// Rule    The data pages are never copied: the kernel writes the time into them.
// Rule    A program may unmap the code and leave the data, as valgrind(1) does, or the other way round.
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
  ASSIGN_OR_RETURN(const std::vector<Vma> areas, ReadMaps(process.proc.get()));
  LiveVdso live;
  for (const Vma& vma : areas) {
    const bool is_code = vma.path == "[vdso]";
    if (!is_code && vma.path != "[vvar]" && vma.path != "[vvar_vclock]") continue;
    const bool follows = live.data.empty() || live.data.back().end == vma.start;
    if (!follows || !live.code.empty()) {
      return Unimplemented("the vDSO of this kernel is laid out in a way that is not known");
    }
    if (is_code) live.code = {vma.start, vma.end};
    if (!is_code) live.data.push_back({vma.start, vma.end});
  }
  return live;
}

Status CheckVdso(const RestoredProcess& process, const LiveVdso& live, const MemoryLayout& image,
                 const PageSet& pages, const ImageSource& source) {
  const bool wants_code = !image.vdso.empty(), wants_data = !image.vvar.empty();
  if ((wants_code && live.code.empty()) || (wants_data && live.data.empty())) {
    return Internal("the vDSO is gone before its process was restored");
  }
  if ((wants_code && image.vdso.size() != live.code.size()) ||
      (wants_data && image.vvar.size() != live.data_bytes()) ||
      (wants_code && wants_data && image.vvar.end != image.vdso.start)) {
    return FailedPrecondition(kOtherKernel);
  }
  if (!wants_code) return OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::byte> theirs, ReadPages(source, pages, image.vdso));
  if (theirs.empty()) return DataLoss("the checkpoint lacks pages of its vDSO");
  std::vector<std::byte> ours(live.code.size());
  RETURN_IF_ERROR(ReadMemory(process.pid, live.code.start, ours));
  return ours == theirs ? OkStatus() : FailedPrecondition(kOtherKernel);
}

Status MoveVdso(RestoredProcess& process, const LiveVdso& live, const MemoryLayout& image) {
  std::vector<AddressRange> parts, unwanted;
  (image.vvar.empty() ? unwanted : parts) = live.data;
  if (!live.code.empty()) (image.vdso.empty() ? unwanted : parts).push_back(live.code);
  for (const AddressRange& part : unwanted) {
    RETURN_IF_ERROR(
        process.remote->Call("munmap of the vDSO", SYS_munmap, part.start, part.size()).status());
  }
  if (parts.empty()) return OkStatus();
  AddressRange now = {parts.front().start, parts.back().end};
  const std::uint64_t start = image.vvar.empty() ? image.vdso.start : image.vvar.start;
  const AddressRange target = {start, start + now.size()};
  if (now == target) return OkStatus();
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
