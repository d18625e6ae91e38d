// What seccomp filters say to a call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/arch/arch.h"

namespace stasis::engine {

struct SeccompFilter {
  std::string program;  // struct sock_filter array
  std::uint32_t flags = 0;
  auto operator<=>(const SeccompFilter&) const = default;
};
using SeccompChain = std::vector<SeccompFilter>;  ///< Oldest first.

/// True when every filter of the chain lets the thread make `call`, at whose end its instruction pointer is
/// `behind`. False as well for a program that we do not understand.
bool Allows(const SeccompChain& chain, const arch::CallInside& call, std::uint64_t behind);

}  // namespace stasis::engine
