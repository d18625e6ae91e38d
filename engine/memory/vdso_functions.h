// The functions in a vDSO, and how those of another kernel's are led to those of ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "engine/base/status.h"

namespace stasis::engine {

/// By name, the bytes from the start of `vdso`, a whole ELF file in memory. DataLoss: it is none.
Result<std::map<std::string, std::uint64_t>> VdsoFunctions(std::span<const std::byte> vdso);

/// Makes each function of `vdso`, of another kernel, go on in that of the same name in `live`, this kernel's, which is
/// to lie at `live_start`; or, where that has none, make its system call. FailedPrecondition: one of which neither is
/// known, or that leaves no room for it. DataLoss as above.
Status RedirectVdso(std::span<std::byte> vdso, std::span<const std::byte> live,
                    std::uint64_t live_start);

}  // namespace stasis::engine
