// A firewall for TCP connections whose socket is gone between a dump and a restore.
#pragma once

#include <span>
#include <string>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/inet_address.h"

namespace stasis::engine {

struct ConnectionEnds {
  InetAddress local, remote;
};

/// What arrives for the connections is dropped while it lives, and after Keep(): the kernel would answer
/// with a reset.
class NetworkLock {
 public:
  /// In the network namespace `ns`, under the run id that the inventory has. Unimplemented: a kernel
  /// without nf_tables.
  static Result<NetworkLock> Take(UniqueFd ns, const std::string& run_id,
                                  std::span<const ConnectionEnds> connections);

  NetworkLock(NetworkLock&&) = default;
  NetworkLock& operator=(NetworkLock&&) = delete;
  ~NetworkLock();

  /// Leaves it to the restore.
  void Keep() { ns_.Reset(); }

 private:
  NetworkLock(UniqueFd ns, std::string run_id) : ns_(std::move(ns)), run_id_(std::move(run_id)) {}

  UniqueFd ns_;
  std::string run_id_;
};

/// Takes away the lock that the dump of that run id left in the network namespace `ns`, if any.
Status UnlockNetwork(int ns, const std::string& run_id);

}  // namespace stasis::engine
