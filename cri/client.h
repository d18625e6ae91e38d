// A client of a CRI socket, for the command line.
#pragma once

#include <chrono>
#include <stop_token>
#include <string>

#include "cri/container_facts.h"
#include "engine/base/status.h"

namespace stasis::cri {

struct CheckpointCall {
  /// Of stasisd, or of a runtime that has checkpoints itself.
  std::string runtime_endpoint = "unix:///run/stasis/stasis.sock";
  std::string container_id = {};  ///< Or an unambiguous beginning of it.
  std::string location = {};  ///< Absolute path of the archive to be made, on the runtime's node.
  std::chrono::seconds timeout{0};  ///< 0: none.
  std::stop_token stop = {};        ///< Ends the call, and with it the checkpoint.
};

/// CheckpointContainer. The errors are the service's; Unavailable names the socket.
Status CheckpointContainer(const CheckpointCall& call);

/// The first of the sockets of stasisd, containerd and CRI-O, at their usual places, behind which
/// somebody is. Unavailable: nobody is anywhere.
Result<std::string> UsualEndpoint();

/// The name and version of the runtime that answers through the socket `endpoint` within `patience`.
/// Unavailable names the socket.
Result<std::string> RuntimeVersionAt(const std::string& endpoint,
                                     std::chrono::microseconds patience = std::chrono::seconds(30),
                                     const std::stop_token& stop = {});

/// DescribeRunning (container_checkpoint.h) through the socket `endpoint`, which has half a minute
/// to answer. Unavailable names the socket.
Result<ContainerFacts> DescribeRunningAt(const std::string& endpoint, const std::string& id,
                                         const std::stop_token& stop);

}  // namespace stasis::cri
