// A firewall for TCP connections whose socket is gone between a dump and a restore.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/inet_address.h"

namespace stasis::engine {

struct ConnectionEnds {
  InetAddress local, remote;
};

/// In the inventory, of a network namespace that is locked as a whole.
constexpr std::uint32_t kNetworkLockNftables = 1;

/// A firewall of ours. It ends with this object, and with us however we end, unless it was kept.
class NetworkLock {
 public:
  /// Drops what arrives for `connections` in the network namespace `ns`: the kernel would answer with a reset.
  /// `run_id`: what the inventory has. Unimplemented: a kernel without nf_tables.
  static Result<NetworkLock> Take(UniqueFd ns, const std::string& run_id,
                                  std::span<const ConnectionEnds> connections);

  /// Drops whatever is sent or arrives in `ns`, but packets with the mark 0xC114 (SO_MARK, socket(7)).
  static Result<NetworkLock> TakeWhole(UniqueFd ns, const std::string& run_id);

  NetworkLock(NetworkLock&&) = default;
  NetworkLock& operator=(NetworkLock&&) = delete;

  /// Leaves it to the restore.
  Status Keep();

 private:
  NetworkLock(UniqueFd ns, UniqueFd owner, std::string kept)
      : ns_(std::move(ns)), owner_(std::move(owner)), kept_(std::move(kept)) {}
  static Result<NetworkLock> Make(UniqueFd ns, const std::string& owned, std::string kept);

  UniqueFd ns_, owner_;
  std::string kept_;  // what makes the table that stays
};

/// Takes away the lock that the dump of that run id left in the network namespace `ns`, if any.
Status UnlockNetwork(int ns, const std::string& run_id);

}  // namespace stasis::engine
