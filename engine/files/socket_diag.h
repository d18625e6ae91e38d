// What sock_diag(7) tells of sockets, where getsockopt(2) does not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// The answers to the dump request `body`, asked in the network namespace of the socket `file`, each
/// without its header. NotFound: this kernel has no such diag module.
Result<std::vector<std::string>> AskSocketDiag(const OpenFile& file,
                                               std::span<const std::byte> body);

/// Attribute `type` of an answer that begins with `fixed_bytes` of a struct.
std::optional<std::string_view> DiagAttribute(std::string_view answer, std::size_t fixed_bytes,
                                              int type);

/// SHUT_RD and SHUT_WR bits (1 and 2) of an internet socket. NotFound: the kernel does not show it.
Result<std::uint32_t> InetShutdown(const OpenFile& file, std::uint32_t protocol);

}  // namespace stasis::engine
