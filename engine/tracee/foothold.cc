// Source  proc_pid_mem(5), proc_pid_pagemap(5), fs/exec.c (setup_arg_pages); tested on 6.18
// Rule    The vDSO is an ELF file in whole pages: its last bytes are padding, or section headers that
//         nobody looks at in memory. A tracer may write there (VM_MAYWRITE); the process gets its own
//         copy of the page.
// Rule    A program may unmap its vDSO. Then a private executable area gives room: the linker fills the last
//         page of code with zeros, and else the bytes are put back as all others are. No thread runs there
//         meanwhile: those of a frozen process stand still.
// Rule    The first program's stack area begins 128 KiB below what exec(2) puts there. A page of it that
//         was never touched holds nothing of the program, whatever stacks its threads use by now; nor, below
//         the stack pointer, does one that is all zeros, as we leave it.
//         Below a stack pointer there may be: a coroutine's stack can be a few KiB in a heap.
#include "engine/tracee/foothold.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "engine/arch/arch.h"
#include "engine/base/io.h"
#include "engine/proc/maps.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kPresentOrSwapped = std::uint64_t{3} << 62;  // of a pagemap word
constexpr std::size_t kCodeBytes = 128;

const Vma* Find(const std::vector<Vma>& areas, std::string_view path) {
  const auto found = std::ranges::find(areas, path, &Vma::path);
  return found == areas.end() ? nullptr : &*found;
}

// True when no page of the range was ever touched.
Result<bool> IsUntouched(pid_t tid, std::uint64_t start, std::size_t size) {
  ASSIGN_OR_RETURN(const UniqueFd map,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(tid) + "/pagemap", O_RDONLY));
  std::vector<std::uint64_t> words((size + kPage - 1) / kPage);
  RETURN_IF_ERROR(ReadExactAt(map.get(), std::as_writable_bytes(std::span(words)),
                              start / kPage * sizeof(std::uint64_t)));
  return std::ranges::all_of(words,
                             [](std::uint64_t word) { return (word & kPresentOrSwapped) == 0; });
}

std::uint64_t CodeIn(const Vma& area) { return area.end - kCodeBytes; }

// Where kCodeBytes may be written for a while: at the end of the vDSO, or of another executable area, at best
// one of zeros.
Result<std::uint64_t> ChooseCode(const std::vector<Vma>& areas, int memory_fd,
                                 std::uint64_t avoid) {
  if (const Vma* const vdso = Find(areas, "[vdso]")) return CodeIn(*vdso);
  std::uint64_t chosen = 0;
  for (const Vma& area : areas) {
    if ((area.prot & PROT_EXEC) == 0 || area.shared || area.path == "[vsyscall]" ||
        area.start == avoid)
      continue;
    const std::uint64_t at = CodeIn(area);
    std::array<std::byte, kCodeBytes> bytes;
    // The last page may be behind the end of its file.
    if (!ReadMemoryForced(memory_fd, at, bytes).ok()) continue;
    chosen = at;
    if (std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; })) break;
  }
  if (chosen == 0) return Unimplemented("has neither a vDSO nor other code of its own");
  return chosen;
}

// True when nothing of the program is in the range, which is at the low end of `stack`.
Result<bool> IsFree(const Tracee& tracee, int memory_fd, const Vma& stack, std::size_t size) {
  ASSIGN_OR_RETURN(const bool untouched, IsUntouched(tracee.tid(), stack.start, size));
  if (untouched) return true;
  ASSIGN_OR_RETURN(const arch::GeneralRegisters registers, arch::ReadGeneral(tracee.tid()));
  const std::uint64_t pointer = arch::StackPointer(registers);
  if (pointer < stack.start + size + arch::kRedZoneBytes || pointer > stack.end) return false;
  std::vector<std::byte> bytes(size);
  RETURN_IF_ERROR(ReadMemoryForced(memory_fd, stack.start, bytes));
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

Result<CallPlace> Foothold::ChooseFrame(const Tracee& tracee, int memory_fd, const Vma* stack,
                                        std::size_t size) {
  constexpr std::uint64_t kFrameAlignment = 64;
  const std::uint64_t frame_end = (size + kFrameAlignment - 1) & ~(kFrameAlignment - 1);
  CallPlace place = {.frame_bytes = size};
  if (stack != nullptr && stack->size() >= 2 * (frame_end + kArgumentBytes)) {
    ASSIGN_OR_RETURN(const bool is_free,
                     IsFree(tracee, memory_fd, *stack, frame_end + kArgumentBytes));
    if (is_free) {
      place.frame = stack->start;
      place.arguments = stack->start + frame_end;
      place.argument_bytes = kArgumentBytes;
      return place;
    }
  }
  ASSIGN_OR_RETURN(const arch::GeneralRegisters registers, arch::ReadGeneral(tracee.tid()));
  place.frame =
      (arch::StackPointer(registers) - arch::kRedZoneBytes - size) & ~(kFrameAlignment - 1);
  return place;
}

Result<UniqueFd> Foothold::OpenMemory(const Tracee& tracee) {
  return OpenAt(AT_FDCWD, "/proc/" + std::to_string(tracee.tid()) + "/mem", O_RDWR);
}

Result<Foothold> Foothold::Take(const Tracee& tracee, std::uint64_t avoid) {
  ASSIGN_OR_RETURN(const UniqueFd proc, OpenAt(AT_FDCWD, "/proc/" + std::to_string(tracee.tid()),
                                               O_RDONLY | O_DIRECTORY));
  std::vector<Vma> areas;
  RETURN_IF_ERROR(EachOfMaps(proc.get(), [&areas](Vma& vma) {
    if ((vma.prot & PROT_EXEC) != 0 || vma.path == "[stack]") areas.push_back(std::move(vma));
    return OkStatus();
  }));
  ASSIGN_OR_RETURN(UniqueFd memory, OpenMemory(tracee));
  ASSIGN_OR_RETURN(const std::uint64_t code, ChooseCode(areas, memory.get(), avoid));
  return TakeAt(tracee, std::move(memory), code, Find(areas, "[stack]"));
}

Result<Foothold> Foothold::Take(const Tracee& tracee, const Vma& vdso, const Vma* stack) {
  ASSIGN_OR_RETURN(UniqueFd memory, OpenMemory(tracee));
  return TakeAt(tracee, std::move(memory), CodeIn(vdso), stack);
}

Result<Foothold> Foothold::TakeAt(const Tracee& tracee, UniqueFd memory, std::uint64_t code,
                                  const Vma* stack) {
  ASSIGN_OR_RETURN(const arch::Registers registers, arch::Read(tracee.tid()));
  const std::size_t frame_size = arch::SignalFrame(registers, 0, 0).size();
  Foothold foothold(std::move(memory));
  ASSIGN_OR_RETURN(foothold.place_, ChooseFrame(tracee, foothold.memory_.get(), stack, frame_size));
  const CallPlace& place = foothold.place_;
  // What is free is zeros, and is made zeros again.
  foothold.data_bytes_.resize(place.argument_bytes == 0
                                  ? place.frame_bytes
                                  : place.arguments + place.argument_bytes - place.frame);
  if (place.argument_bytes == 0) {
    RETURN_IF_ERROR(ReadMemoryForced(foothold.memory_.get(), place.frame, foothold.data_bytes_));
  }
  foothold.place_.code = code;
  foothold.code_bytes_.resize(arch::HomewardCode().size());
  RETURN_IF_ERROR(ReadMemoryForced(foothold.memory_.get(), code, foothold.code_bytes_));
  RETURN_IF_ERROR(WriteMemoryForced(foothold.memory_.get(), code, arch::HomewardCode()));
  return foothold;
}

Foothold::~Foothold() { (void)Leave(); }  // an early return: already reporting worse

Status Foothold::Leave() {
  if (!memory_) return OkStatus();
  const UniqueFd memory = std::move(memory_);
  RETURN_IF_ERROR(WriteMemoryForced(memory.get(), place_.code, code_bytes_));
  return WriteMemoryForced(memory.get(), place_.frame, data_bytes_);
}

}  // namespace stasis::engine
