// What a caller may choose about a dump or a restore. Names and meaning are those of CRIU's command
// line (criu(8)); what is safe is on by default.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace stasis::engine {

struct Options {
  /// Established TCP connections are dumped and restored (TCP_REPAIR); otherwise they come back as after a
  /// reset. Of a checkpoint that holds them, `tcp_close` restores them so all the same.
  bool tcp_established = false;
  bool tcp_close = false;
  /// Connections that no accept(2) has taken yet are left out, not refused.
  bool skip_in_flight = false;
  /// Sockets connected to a peer outside the tree: datagram ones by the peer's path, others are severed.
  bool ext_unix_sk = false;
  /// Largest deleted file that is put into a checkpoint, bytes.
  std::uint64_t ghost_limit = std::numeric_limits<std::uint64_t>::max();
  /// KIND[THING]:NAME, what a restore gets from outside.
  std::vector<std::string> external;
  /// Clocks of a restored tree may go backwards where it has no right to a time namespace.
  bool clocks_may_go_back = false;
  /// A restored tree is left stopped (SIGSTOP).
  bool leave_stopped = false;
};

}  // namespace stasis::engine
