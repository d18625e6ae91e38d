// What a caller may choose about a dump or a restore. Names and meaning are those of CRIU's command
// line (criu(8)); what is safe is on by default.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace stasis::engine {

/// What a restore does with cgroups of the tree's own (criu(8) --manage-cgroups).
enum class ManageCgroups {
  kIgnore,  ///< Tasks stay where the root is; a dump does not look either.
  kNone,    ///< Tasks are moved, into what must be there already; its settings stay.
  kProps,   ///< The same, and its settings are put back.
  kSoft,    ///< What is missing is made, with its settings; others keep theirs.
  kFull,    ///< What is missing is made; all settings are put back.
  kStrict,  ///< All is made, and must not be there before.
};

struct Options {
  /// Established TCP connections are dumped and restored (TCP_REPAIR); otherwise they come back as after a
  /// reset. Of a checkpoint that holds them, `tcp_close` restores them so all the same.
  bool tcp_established = false;
  bool tcp_close = false;
  /// A dump that ends the tree locks all of its network namespace until the restore, where that is not ours; else only
  /// established connections that are dumped.
  bool lock_network = false;
  /// Connections that no accept(2) has taken yet are left out, not refused.
  bool skip_in_flight = false;
  /// Sockets connected to a peer outside the tree: datagram ones by the peer's path, others are severed.
  bool ext_unix_sk = false;
  /// Largest deleted file that is put into a checkpoint, bytes; the largest number: as files/ghost_file.cc has
  /// it.
  std::uint64_t ghost_limit = std::numeric_limits<std::uint64_t>::max();
  ManageCgroups manage_cgroups = ManageCgroups::kSoft;
  /// [CONTROLLERS:]/PATH: on the host, cgroups come back below this one. Without controllers: of all others.
  std::vector<std::string> cgroup_root;
  /// KIND[THING]:NAME, what a restore gets from outside.
  std::vector<std::string> external;
  /// Directory that becomes the root of a restored tree's mount namespace, where it had one to itself.
  std::string root = "/";
  /// KIND:PID or KIND:PATH, namespaces that a restored tree gets.
  std::vector<std::string> join_ns;
  /// A restore makes the other namespaces that a tree had to itself, and a dump looks into them for it; else they
  /// are a runtime's to make.
  bool own_namespaces = false;
  /// Clocks of a restored tree may go backwards where it has no right to a time namespace.
  bool clocks_may_go_back = false;
  /// A dump saves the bulk of large memory while the tree runs; it is then in checkpoints that the final one
  /// is based on (CRIU's `parent`).
  bool pre_copy = true;
  /// A restored program runs before all of its memory is there (memory/lazy_pages.h).
  bool lazy_pages = false;
  /// A restored tree is left stopped (SIGSTOP).
  bool leave_stopped = false;
};

}  // namespace stasis::engine
