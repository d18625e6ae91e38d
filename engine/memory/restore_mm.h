// The addresses that the kernel keeps for a process besides its areas: program, heap, arguments, auxv.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {

/// struct prctl_mm_map of linux/prctl.h without its last three fields, and the auxiliary vector.
struct MmAddresses {
  std::uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
  std::uint64_t arg_start, arg_end, env_start, env_end;
  std::vector<std::uint64_t>
      auxv;  ///< With its last pair AT_NULL, no longer than the kernel takes.
};

/// InvalidArgument for addresses that the kernel would refuse.
Result<MmAddresses> ReadMmAddresses(const image::MmEntry& mm);

/// Sets them in the process of `remote`; needs no right there.
Status SetMmAddresses(RemoteSyscalls& remote, const MmAddresses& addresses);

}  // namespace stasis::engine
