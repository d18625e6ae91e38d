// The vDSO: code that the kernel lends to every process, and the data it reads.
#pragma once

#include <vector>

#include "engine/base/status.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_pages.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Where the vDSO of a process lies now: its data pages ([vvar] and from Linux 6.13 on [vvar_vclock]), in rising order,
/// and the code behind them. A fork of a process that unmapped either has it no more.
struct LiveVdso {
  std::vector<AddressRange> data;
  AddressRange code = {};

  std::uint64_t data_bytes() const {
    return data.empty() ? 0 : data.back().end - data.front().start;
  }
  AddressRange whole() const {
    if (data.empty()) return code;
    return {data.front().start, code.empty() ? data.back().end : code.end};
  }
};

/// Unimplemented: one of a shape that we do not know.
Result<LiveVdso> FindVdso(const RestoredProcess& process);

/// What becomes of it.
struct VdsoPlan {
  /// Where all of it goes. Of the same kernel, to where the image has it. Of another, the program's pointers into it
  /// have to be good, too: then it goes where the image has nothing, and ...
  AddressRange place = {};
  /// ... this is where the image has it: its own vDSO, each function of which goes on in this kernel's.
  std::vector<std::byte> redirected;

  bool is_other() const { return !redirected.empty(); }
};

/// FailedPrecondition: the vDSO in the image, whose pages are in `pages`, is of another kernel or processor, and a thread
/// stands in it, or it has what this one has not. Nothing is changed.
Result<VdsoPlan> PlanVdso(const RestoredProcess& process, const LiveVdso& live,
                          const MemoryLayout& image, const PageSet& pages,
                          const ImageSource& source);

/// Moves it there, and unmaps what of it the image has not. Nothing but that and our area may be in the process where
/// it goes.
Status PlaceVdso(RestoredProcess& process, const LiveVdso& live, const MemoryLayout& image,
                 const VdsoPlan& plan);

}  // namespace stasis::engine
