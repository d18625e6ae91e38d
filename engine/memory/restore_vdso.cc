// Source  vdso(7), mremap(2); tested on 6.18
// Rule    The vDSO reads its data at a fixed distance, so all parts move by the same way.
// Rule    A special mapping is moved whole or not at all; the kernel then follows with its own idea of
//         where the vDSO is (vdso_mremap() in arch/x86/entry/vdso/vma.c).
// Rule    The data pages are never copied: the kernel writes the time into them.
// Rule    Another kernel, or the same one on another processor, has other code, with its functions and data elsewhere.
//         Programs keep pointers to the functions from when they started.
// Rule    A program may unmap the code and leave the data, as valgrind(1) does, or the other way round.
#include "engine/memory/restore_vdso.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "engine/arch/arch.h"
#include "engine/base/io.h"
#include "engine/memory/vdso_functions.h"
#include "engine/proc/maps.h"
#include "engine/tracee/tracee.h"

namespace stasis::engine {
namespace {

constexpr char kOtherKernel[] =
    "the checkpoint was made on another kernel or processor (the vDSO differs): restore it on a "
    "node with the same";

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

namespace {

bool IsSame(const LiveVdso& live, const MemoryLayout& image) {
  const bool wants_code = !image.vdso.empty(), wants_data = !image.vvar.empty();
  return (!wants_code || image.vdso.size() == live.code.size()) &&
         (!wants_data || image.vvar.size() == live.data_bytes());
}

// What lies from `address` on, as far as there are pages, at most kHandlerBytes.
Result<std::vector<std::byte>> ReadStack(std::uint64_t address, const PageSet& pages,
                                         const ImageSource& source) {
  constexpr std::uint64_t kHandlerBytes = 64 << 10;
  std::vector<std::byte> stack;
  for (std::uint64_t at = address & ~(kPageBytes - 1); stack.size() < kHandlerBytes;
       at += kPageBytes) {
    ASSIGN_OR_RETURN(const auto page, ReadPages(source, pages, {at, at + kPageBytes}));
    if (page.empty()) break;
    stack.insert(stack.end(), page.begin(), page.end());
  }
  return stack;
}

Status CheckThreads(const RestoredProcess& process, const AddressRange& vdso, const PageSet& pages,
                    const ImageSource& source) {
  for (const ThreadImage& thread : process.image->threads) {
    const std::uint64_t at = arch::InstructionPointerOf(thread.core);
    const bool stands_there = vdso.start <= at && at < vdso.end;
    ASSIGN_OR_RETURN(const std::vector<std::byte> stack,
                     ReadStack(arch::StackPointerOf(thread.core), pages, source));
    if (!stands_there && !arch::HasFrameFrom(stack, vdso.start, vdso.end)) continue;
    return FailedPrecondition(std::string(kOtherKernel) + ", as thread " +
                              std::to_string(thread.tid) + " was in it");
  }
  return OkStatus();
}

// As near to where it was as the image has room: as hard to guess, and not among low addresses, which programs want
// for themselves.
Result<AddressRange> FindPlace(const RestoredProcess& process, const LiveVdso& live,
                               const MemoryLayout& image) {
  std::vector<AddressRange> busy = {image.vvar, image.vdso};
  for (const AreaImage& area : image.areas) busy.push_back(area.range);
  busy.push_back({process.area.address, process.area.address + RemoteArea::kBytes});
  const AddressRange now = live.whole();
  const auto in_way = [&](const AddressRange& range) { return range.Overlaps(now); };
  if (std::ranges::none_of(busy, in_way)) return now;
  constexpr std::uint64_t kNear = std::uint64_t{64} << 30;
  const std::uint64_t near = std::max(image.vdso.start, kUsable.start + kNear) - kNear;
  const auto start = FindGap(std::move(busy), now.size(), {near, kUsable.end});
  if (!start) return ResourceExhausted("no room for this kernel's vDSO");
  return AddressRange{*start, *start + now.size()};
}

Result<VdsoPlan> PlanOther(const RestoredProcess& process, const LiveVdso& live,
                           std::span<const std::byte> ours, std::vector<std::byte> theirs,
                           const MemoryLayout& image, const PageSet& pages,
                           const ImageSource& source) {
  // One that is apart from its data does not tell the time on its own kernel either.
  if (live.data.empty() || image.vvar.end != image.vdso.start) {
    return FailedPrecondition(kOtherKernel);
  }
  RETURN_IF_ERROR(CheckThreads(process, image.vdso, pages, source));
  VdsoPlan plan;
  ASSIGN_OR_RETURN(plan.place, FindPlace(process, live, image));
  plan.redirected = std::move(theirs);
  RETURN_IF_ERROR(RedirectVdso(plan.redirected, ours, plan.place.start + live.data_bytes()));
  return plan;
}

}  // namespace

Result<VdsoPlan> PlanVdso(const RestoredProcess& process, const LiveVdso& live,
                          const MemoryLayout& image, const PageSet& pages,
                          const ImageSource& source) {
  const bool wants_code = !image.vdso.empty(), wants_data = !image.vvar.empty();
  if ((wants_code && live.code.empty()) || (wants_data && live.data.empty())) {
    return Internal("the vDSO is gone before its process was restored");
  }
  // What no kernel has, and nobody needs to hold.
  constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 20;
  if (image.vdso.size() > kMostBytes || image.vvar.size() > kMostBytes) {
    return FailedPrecondition("a vDSO of an impossible size");
  }
  const bool is_whole = wants_code && wants_data;
  if ((!wants_code && !IsSame(live, image)) || (is_whole && image.vvar.end != image.vdso.start)) {
    return FailedPrecondition(kOtherKernel);
  }
  const std::uint64_t start = wants_data ? image.vvar.start : image.vdso.start;
  VdsoPlan same = {.place = {start, start + live.whole().size()}, .redirected = {}};
  if (!wants_code) return same;
  ASSIGN_OR_RETURN(std::vector<std::byte> theirs, ReadPages(source, pages, image.vdso));
  if (theirs.empty()) return DataLoss("the checkpoint lacks pages of its vDSO");
  std::vector<std::byte> ours(live.code.size());
  RETURN_IF_ERROR(ReadMemory(process.pid, live.code.start, ours));
  if (IsSame(live, image) && ours == theirs) return same;
  return PlanOther(process, live, ours, std::move(theirs), image, pages, source);
}

namespace {

Status MoveTo(RestoredProcess& process, std::vector<AddressRange> parts, std::uint64_t start) {
  AddressRange now = {parts.front().start, parts.back().end};
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

// The other kernel's code at its old place, and nothing that can be read where its data was.
Status MapRedirected(RestoredProcess& process, const MemoryLayout& image,
                     std::span<const std::byte> code) {
  RemoteSyscalls& remote = *process.remote;
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  const auto map = [&](const AddressRange& range, int prot) {
    return remote.Call("mmap of a vDSO", SYS_mmap, range.start, range.size(), prot, kFlags, -1, 0)
        .status();
  };
  RETURN_IF_ERROR(map(image.vvar, PROT_NONE));
  RETURN_IF_ERROR(map(image.vdso, PROT_READ | PROT_WRITE));
  RETURN_IF_ERROR(WriteMemory(process.pid, image.vdso.start, code));
  return remote
      .Call("mprotect of a vDSO", SYS_mprotect, image.vdso.start, image.vdso.size(),
            PROT_READ | PROT_EXEC)
      .status();
}

}  // namespace

Status PlaceVdso(RestoredProcess& process, const LiveVdso& live, const MemoryLayout& image,
                 const VdsoPlan& plan) {
  std::vector<AddressRange> parts, unwanted;
  (image.vvar.empty() ? unwanted : parts) = live.data;
  if (!live.code.empty()) (image.vdso.empty() ? unwanted : parts).push_back(live.code);
  for (const AddressRange& part : unwanted) {
    RETURN_IF_ERROR(
        process.remote->Call("munmap of the vDSO", SYS_munmap, part.start, part.size()).status());
  }
  if (!parts.empty()) RETURN_IF_ERROR(MoveTo(process, std::move(parts), plan.place.start));
  return plan.is_other() ? MapRedirected(process, image, plan.redirected) : OkStatus();
}

}  // namespace stasis::engine
