// Network devices of all the network namespaces of a tree are made again.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/tasks/network_device.h"

namespace stasis::engine {

struct NetworkToMake {
  NumberedNetwork where;
  std::span<const NetworkDevice> devices;
};

/// What they are joined with in the network namespace `ns_fd`, which is not the tree's (criu(8) --external).
struct OutsideDevices {
  int ns_fd = -1;
  bool stands_in = false;  ///< It is empty, and gets whatever is needed.
  struct Peer {
    std::string name, bridge;
  };
  std::map<std::string, Peer> veth;            ///< veth[IN]:OUT@BRIDGE, the other end that is made
  std::map<std::string, std::string> macvlan;  ///< macvlan[IN]:OUT, what it is on
  std::map<std::string, std::string> netdev;   ///< netdev[IN]:OUT, a device that becomes it
};

/// What a restore has to be told about these, a sentence each.
std::vector<std::string> NeedsOfDevices(std::span<const NetworkDevice> devices);

/// What of `external` (Options::external) is about devices. InvalidArgument: not KIND[THING]:NAME.
Result<OutsideDevices> ParseOutsideDevices(const std::vector<std::string>& external);

/// Makes all of them in these namespaces, which have their own loopback device alone; they are down. FailedPrecondition:
/// one is joined with what is not here, with the next step.
Status MakeDevices(std::span<const NetworkToMake> networks, const OutsideDevices& outside);

/// Those that were up are brought up, and the ends of theirs outside that have a bridge. `awaits`: until they are connected
/// as they were, or for a moment.
Status StartDevices(std::span<const NetworkToMake> networks, const OutsideDevices& outside,
                    bool awaits);

/// FailedPrecondition: they are not as they were. `exact` as of Difference().
Status CompareDevices(std::span<const NetworkToMake> networks, const OutsideDevices& outside,
                      bool exact);

}  // namespace stasis::engine
