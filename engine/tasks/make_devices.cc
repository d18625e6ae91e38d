// Source  rtnetlink(7), veth(4), criu(8) --external; net/core/rtnetlink.c, drivers/net/veth.c; tested on 6.18
// Rule    A request may name the number that a new device gets, also that of a veth's other end, and the namespace in
//         which each is made (IFLA_NET_NS_FD); IFLA_LINK is a number in that of the socket.
// Rule    A device is moved by IFLA_NET_NS_FD, and gets the number IFLA_NEW_IFINDEX there (Linux 5.12)
// Rule    A bridge has the smallest MTU of its ports from the moment that one comes, so its own is set after these.
// Rule    What is on another device comes up after that one only (vlan_dev_open() in net/8021q/vlan_dev.c).
#include "engine/tasks/make_devices.h"

#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <set>
#include <utility>

#include "engine/tasks/tun_device.h"

namespace stasis::engine {
namespace {

constexpr int kConnectMilliseconds = 2000;
constexpr std::uint16_t kNewIndex = 49;  // IFLA_NEW_IFINDEX, Linux 5.12

ifinfomsg HeadOf(std::uint32_t index) {
  ifinfomsg head = {};
  head.ifi_index = static_cast<int>(index);
  return head;
}

std::string BytesOf(const ifinfomsg& head) {
  std::string bytes;
  Append(bytes, head);
  return bytes;
}

void AddText(Attributes& attributes, std::uint16_t type, const std::string& text) {
  attributes.push_back({type, text + '\0'});
}

void Copy(const NetworkDevice& device, std::initializer_list<std::uint16_t> types,
          Attributes& attributes) {
  for (const std::uint16_t type : types) {
    const std::string* const bytes = Find(device.attributes, type);
    if (bytes != nullptr && !bytes->empty()) attributes.push_back({type, *bytes});
  }
}

Result<std::uint32_t> IndexOf(const RouteSocket& socket, const std::string& name) {
  Attributes attributes;
  AddText(attributes, IFLA_IFNAME, name);
  const Result<std::string> answer = socket.Ask(BytesOf(HeadOf(0)), attributes, RTM_GETLINK);
  if (!answer.ok()) return Annotate(answer.status(), "network device " + name);
  if (answer->size() < NLMSG_HDRLEN + sizeof(ifinfomsg)) return DataLoss("answer of rtnetlink");
  return static_cast<std::uint32_t>(
      ReadAs<ifinfomsg>(std::string_view(*answer).substr(NLMSG_HDRLEN)).ifi_index);
}

bool IsOutside(const NetworkDevice& device) {
  return NumberOf(device.attributes, IFLA_LINK_NETNSID) == kOutsideNetwork;
}

class Maker {
 public:
  Maker(std::span<const NetworkToMake> networks, const OutsideDevices& outside)
      : networks_(networks), outside_(outside) {}

  Status Run() {
    for (const NetworkToMake& network : networks_) {
      ASSIGN_OR_RETURN(RouteSocket socket, RouteSocket::OpenIn(network.where.ns_fd));
      sockets_.emplace(network.where.number, std::move(socket));
    }
    // What is on another one is made after that.
    for (std::size_t made = 0;;) {
      const std::size_t before = made;
      for (const NetworkToMake& network : networks_) {
        for (const NetworkDevice& device : network.devices) {
          if (made_.contains({network.where.number, device.index}) || Waits(network, device))
            continue;
          RETURN_IF_ERROR(Annotate(Make(network, device), "network device " + device.name()));
          made_.insert({network.where.number, device.index});
          ++made;
        }
      }
      if (made == before) break;
    }
    for (const NetworkToMake& network : networks_) {
      for (const NetworkDevice& device : network.devices) {
        if (!made_.contains({network.where.number, device.index})) {
          return FailedPrecondition("network device " + device.name() +
                                    ": what it is on is in no network that is made again");
        }
        RETURN_IF_ERROR(Annotate(Furnish(network, device), "network device " + device.name()));
      }
    }
    for (const NetworkToMake& network : networks_) {
      ASSIGN_OR_RETURN(const auto now, ReadDevices(network.where.ns_fd, {}));
      for (const NetworkDevice& device : network.devices) {
        const auto made = std::ranges::find(now, device.index, &NetworkDevice::index);
        if (made == now.end())
          return FailedPrecondition("network device " + device.name() + " is gone");
        RETURN_IF_ERROR(
            Annotate(Adjust(network, device, *made), "network device " + device.name()));
      }
    }
    return OkStatus();
  }

 private:
  // Where its other end or what it is on is.
  static std::uint32_t PlaceOf(const NetworkToMake& network, const NetworkDevice& device) {
    const bool is_elsewhere = Find(device.attributes, IFLA_LINK_NETNSID) != nullptr;
    return is_elsewhere ? NumberOf(device.attributes, IFLA_LINK_NETNSID) : network.where.number;
  }

  bool Waits(const NetworkToMake& network, const NetworkDevice& device) const {
    const bool is_on_another = device.kind == "macvlan" || device.kind == "vlan";
    return is_on_another && !IsOutside(device) && !outside_.netdev.contains(device.name()) &&
           !made_.contains({PlaceOf(network, device), device.link()});
  }

  Status Make(const NetworkToMake& network, const NetworkDevice& device) {
    if (device.is_loopback()) return OkStatus();
    if (outside_.netdev.contains(device.name())) return Move(network, device);
    if (device.kind == "tun") return MakeTunDevice(network.where.ns_fd, device);
    if (device.kind == "veth") return MakePair(network, device);
    if (device.kind == "macvlan" || device.kind == "vlan") return MakeOn(network, device);
    return Create(sockets_.at(network.where.number), device, {}, {}, "");
  }

  static Attributes Basics(const NetworkDevice& device) {
    Attributes attributes;
    Copy(device,
         {IFLA_IFNAME, IFLA_ADDRESS, IFLA_MTU, IFLA_TXQLEN, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES},
         attributes);
    return attributes;
  }

  // `more`: where it is made, and on what.
  static Status Create(const RouteSocket& socket, const NetworkDevice& device,
                       const Attributes& more, const Attributes& data, const std::string& hint) {
    Attributes attributes = Basics(device);
    attributes.insert(attributes.end(), more.begin(), more.end());
    Attributes info;
    AddText(info, IFLA_INFO_KIND, device.kind);
    if (!data.empty()) info.push_back({IFLA_INFO_DATA, ToBytes(data)});
    attributes.push_back({IFLA_LINKINFO, ToBytes(info)});
    const Status made = socket.Send(BytesOf(HeadOf(device.index)), attributes, RTM_NEWLINK,
                                    NLM_F_CREATE | NLM_F_EXCL);
    return hint.empty() ? made : Annotate(made, hint);
  }

  // A device of ours becomes it.
  Status Move(const NetworkToMake& network, const NetworkDevice& device) {
    const std::string& name = outside_.netdev.at(device.name());
    ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::OpenIn(outside_.ns_fd));
    ASSIGN_OR_RETURN(const std::uint32_t index, IndexOf(socket, name));
    Attributes attributes;
    Add(attributes, IFLA_NET_NS_FD, network.where.ns_fd);
    Copy(device, {IFLA_IFNAME}, attributes);
    Add(attributes, kNewIndex, device.index);
    RETURN_IF_ERROR(
        Annotate(socket.Send(BytesOf(HeadOf(index)), attributes, RTM_NEWLINK, 0), "move " + name));
    Attributes basics;
    Copy(device, {IFLA_ADDRESS, IFLA_MTU, IFLA_TXQLEN}, basics);
    return sockets_.at(network.where.number)
        .Send(BytesOf(HeadOf(device.index)), basics, RTM_NEWLINK, 0);
  }

  const NetworkToMake* NetworkOf(std::uint32_t number) const {
    const auto found = std::ranges::find_if(
        networks_, [&](const NetworkToMake& one) { return one.where.number == number; });
    return found == networks_.end() ? nullptr : &*found;
  }

  Status MakePair(const NetworkToMake& network, const NetworkDevice& device) {
    if (IsOutside(device)) return MakeOneEnd(network, device);
    const std::uint32_t place = PlaceOf(network, device);
    const NetworkToMake* const other = NetworkOf(place);
    if (other == nullptr) {
      return FailedPrecondition("its other end is in a network that is not made again");
    }
    const auto peer = std::ranges::find(other->devices, device.link(), &NetworkDevice::index);
    if (peer == other->devices.end() || peer->kind != "veth")
      return DataLoss("it has no other end");
    Attributes of_peer = Basics(*peer);
    Add(of_peer, IFLA_NET_NS_FD, other->where.ns_fd);
    const Attributes data = {{VETH_INFO_PEER, BytesOf(HeadOf(peer->index)) + ToBytes(of_peer)}};
    RETURN_IF_ERROR(Create(sockets_.at(network.where.number), device, {}, data, ""));
    made_.insert({place, peer->index});
    return OkStatus();
  }

  Status MakeOneEnd(const NetworkToMake& network, const NetworkDevice& device) {
    OutsideDevices::Peer peer;
    if (!outside_.stands_in) {
      const auto named = outside_.veth.find(device.name());
      if (named == outside_.veth.end()) {
        return FailedPrecondition(
            "its other end was outside of the tree: say what that is to be called (--external "
            "'veth[" +
            device.name() +
            "]:NAME', with @BRIDGE where it is to be on one), or which device is to "
            "take its place (--external 'netdev[" +
            device.name() + "]:NAME')");
      }
      peer = named->second;
    }
    Attributes of_peer;
    if (!peer.name.empty()) AddText(of_peer, IFLA_IFNAME, peer.name);
    Copy(device, {IFLA_MTU}, of_peer);
    const Attributes data = {{VETH_INFO_PEER, BytesOf(HeadOf(0)) + ToBytes(of_peer)}};
    Attributes where;
    Add(where, IFLA_NET_NS_FD, network.where.ns_fd);
    ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::OpenIn(outside_.ns_fd));
    RETURN_IF_ERROR(Create(socket, device, where, data, "with " + peer.name + " as its other end"));
    if (peer.bridge.empty()) return OkStatus();
    ASSIGN_OR_RETURN(const std::uint32_t index, IndexOf(socket, peer.name));
    ASSIGN_OR_RETURN(const std::uint32_t bridge, IndexOf(socket, peer.bridge));
    Attributes master;
    Add(master, IFLA_MASTER, bridge);
    return Annotate(socket.Send(BytesOf(HeadOf(index)), master, RTM_NEWLINK, 0),
                    peer.name + " on " + peer.bridge);
  }

  // Something to be on, that does not matter.
  static Result<std::uint32_t> MakeStandIn(const RouteSocket& socket) {
    const std::string name = "on";
    if (const Result<std::uint32_t> there = IndexOf(socket, name); there.ok()) return there;
    Attributes attributes, info;
    AddText(attributes, IFLA_IFNAME, name);
    Add(attributes, IFLA_MTU, std::uint32_t{65535});
    AddText(info, IFLA_INFO_KIND, "veth");
    attributes.push_back({IFLA_LINKINFO, ToBytes(info)});
    RETURN_IF_ERROR(
        socket.Send(BytesOf(HeadOf(0)), attributes, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL));
    return IndexOf(socket, name);
  }

  Status MakeOn(const NetworkToMake& network, const NetworkDevice& device) {
    Attributes where;
    Add(where, IFLA_NET_NS_FD, network.where.ns_fd);
    if (!IsOutside(device)) {
      const auto socket = sockets_.find(PlaceOf(network, device));
      if (socket == sockets_.end()) return FailedPrecondition("what it is on is not made again");
      Add(where, IFLA_LINK, device.link());
      return Create(socket->second, device, where, SettableData(device), "");
    }
    ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::OpenIn(outside_.ns_fd));
    std::uint32_t on = 0;
    if (outside_.stands_in) {
      ASSIGN_OR_RETURN(on, MakeStandIn(socket));
    } else {
      const auto named = outside_.macvlan.find(device.name());
      if (device.kind != "macvlan" || named == outside_.macvlan.end()) {
        const std::string kind = device.kind == "macvlan" ? "macvlan" : "netdev";
        return FailedPrecondition(
            "it was on a device outside of the tree: say which one that is to be (--external '" +
            kind + "[" + device.name() + "]:NAME')");
      }
      ASSIGN_OR_RETURN(on, IndexOf(socket, named->second));
    }
    Add(where, IFLA_LINK, on);
    return Create(socket, device, where, SettableData(device), "");
  }

  // What it can only be told when it and all others are there.
  Status Furnish(const NetworkToMake& network, const NetworkDevice& device) {
    const RouteSocket& socket = sockets_.at(network.where.number);
    const std::string head = BytesOf(HeadOf(device.index));
    if (device.master() != 0) {
      Attributes attributes;
      Add(attributes, IFLA_MASTER, device.master());
      RETURN_IF_ERROR(socket.Send(head, attributes, RTM_NEWLINK, 0));
    }
    Attributes attributes;
    if (device.is_loopback() || device.kind == "tun") {
      Copy(device, {IFLA_ADDRESS, IFLA_MTU, IFLA_TXQLEN}, attributes);
    }
    Copy(device, {IFLA_GROUP, IFLA_LINKMODE}, attributes);
    const std::string* const alias = Find(device.attributes, IFLA_IFALIAS);
    if (alias != nullptr) attributes.push_back({IFLA_IFALIAS, alias->substr(0, alias->find('\0'))});
    return attributes.empty() ? OkStatus() : socket.Send(head, attributes, RTM_NEWLINK, 0);
  }

  // What it is told once all bridges have their ports: what is not as it was. A kernel may show what it does not take.
  Status Adjust(const NetworkToMake& network, const NetworkDevice& device,
                const NetworkDevice& now) const {
    Attributes attributes, info;
    if (device.mtu() != now.mtu()) Copy(device, {IFLA_MTU}, attributes);
    const Attributes data = Others(SettableData(device), now.data);
    if (device.kind == "bridge" && !data.empty()) {
      AddText(info, IFLA_INFO_KIND, device.kind);
      info.push_back({IFLA_INFO_DATA, ToBytes(data)});
    }
    const Attributes slave_data = Others(device.slave_data, now.slave_data);
    if (!slave_data.empty()) {
      AddText(info, IFLA_INFO_SLAVE_KIND, device.slave_kind);
      info.push_back({IFLA_INFO_SLAVE_DATA, ToBytes(slave_data)});
    }
    if (!info.empty()) attributes.push_back({IFLA_LINKINFO, ToBytes(info)});
    if (attributes.empty()) return OkStatus();
    return sockets_.at(network.where.number)
        .Send(BytesOf(HeadOf(device.index)), attributes, RTM_NEWLINK, 0);
  }

  static Attributes Others(Attributes wanted, const Attributes& now) {
    std::erase_if(wanted, [&](const Attribute& one) {
      const std::string* const bytes = Find(now, one.type);
      return bytes != nullptr && *bytes == one.bytes;
    });
    return wanted;
  }

  std::span<const NetworkToMake> networks_;
  const OutsideDevices& outside_;
  std::map<std::uint32_t, RouteSocket> sockets_;
  std::set<std::pair<std::uint32_t, std::uint32_t>> made_;  // number of the network, of the device
};

Status SetFlags(const RouteSocket& socket, std::uint32_t index, std::uint32_t flags,
                std::uint32_t which) {
  ifinfomsg head = HeadOf(index);
  head.ifi_flags = flags;
  head.ifi_change = which;
  return socket.Send(BytesOf(head), {}, RTM_NEWLINK, 0);
}

// The ends outside of those that were up.
Status StartOutside(std::span<const NetworkToMake> networks, const OutsideDevices& outside) {
  if (outside.ns_fd < 0) return OkStatus();
  ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::OpenIn(outside.ns_fd));
  for (const NetworkToMake& network : networks) {
    for (const NetworkDevice& device : network.devices) {
      const auto peer = outside.veth.find(device.name());
      if (peer == outside.veth.end() || peer->second.bridge.empty()) continue;
      ASSIGN_OR_RETURN(const std::uint32_t index, IndexOf(socket, peer->second.name));
      RETURN_IF_ERROR(Annotate(SetFlags(socket, index, IFF_UP, IFF_UP), peer->second.name));
    }
  }
  return OkStatus();
}

Result<bool> AreConnected(const NetworkToMake& network, const OutsideDevices& outside) {
  ASSIGN_OR_RETURN(const std::vector<NetworkDevice> now, ReadDevices(network.where.ns_fd, {}));
  return std::ranges::all_of(network.devices, [&](const NetworkDevice& before) {
    const auto device = std::ranges::find(now, before.index, &NetworkDevice::index);
    // A program may have yet to open it, or somebody to bring up the other end. A bridge without ports has no carrier
    // once it has been given an address.
    const bool has_ports = std::ranges::find(network.devices, before.index,
                                             &NetworkDevice::master) != network.devices.end();
    const bool is_others =
        before.kind == "tun" || (before.kind == "bridge" && !has_ports) ||
        (IsOutside(before) && before.kind == "veth" && !outside.veth.contains(before.name()));
    return is_others || (before.flags & IFF_RUNNING) == 0 || device == now.end() ||
           (device->flags & IFF_RUNNING) != 0;
  });
}

}  // namespace

std::vector<std::string> NeedsOfDevices(std::span<const NetworkDevice> devices) {
  std::vector<std::string> needs;
  for (const NetworkDevice& device : devices) {
    if (!IsOutside(device)) continue;
    needs.push_back("its network device " + device.name() +
                    " is joined with one outside of the tree: `stasis restore` is to be told which "
                    "(--external '" +
                    (device.kind == "vlan" ? "netdev" : device.kind) + "[" + device.name() +
                    "]:NAME')");
  }
  return needs;
}

Result<OutsideDevices> ParseOutsideDevices(const std::vector<std::string>& external) {
  OutsideDevices outside;
  for (const std::string& text : external) {
    const std::size_t open = text.find('['), close = text.find("]:");
    const std::string kind = text.substr(0, open);
    if (kind != "veth" && kind != "macvlan" && kind != "netdev") continue;
    if (open == std::string::npos || close == std::string::npos || close < open) {
      return InvalidArgument("--external " + text + " is not " + kind + "[NAME]:NAME");
    }
    const std::string inside = text.substr(open + 1, close - open - 1);
    const std::string name = text.substr(close + 2);
    if (inside.empty() || name.empty()) {
      return InvalidArgument("--external " + text + " lacks a name: " + kind + "[NAME]:NAME");
    }
    if (kind == "macvlan") outside.macvlan[inside] = name;
    if (kind == "netdev") outside.netdev[inside] = name;
    if (kind != "veth") continue;
    const std::size_t at = name.find('@');
    outside.veth[inside] = {.name = name.substr(0, at),
                            .bridge = at == std::string::npos ? "" : name.substr(at + 1)};
  }
  return outside;
}

Status MakeDevices(std::span<const NetworkToMake> networks, const OutsideDevices& outside) {
  return Maker(networks, outside).Run();
}

// The addresses of macvlans on one device differ. Those of a network whose last process was just killed are there until
// the kernel has cleaned it up, which nobody waits for (cleanup_net() in net/core/net_namespace.c).
Status StartDevices(std::span<const NetworkToMake> networks, const OutsideDevices& outside,
                    bool awaits) {
  constexpr std::chrono::seconds kCleanUp{10};
  const auto deadline = std::chrono::steady_clock::now() + kCleanUp;
  constexpr std::uint32_t kChosen = IFF_UP | IFF_DEBUG | IFF_NOTRAILERS | IFF_NOARP | IFF_PROMISC |
                                    IFF_ALLMULTI | IFF_MULTICAST | IFF_DYNAMIC;
  for (const NetworkToMake& network : networks) {
    ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::OpenIn(network.where.ns_fd));
    std::vector<const NetworkDevice*> waiting;
    for (const NetworkDevice& device : network.devices) waiting.push_back(&device);
    Status last;
    for (std::size_t before = 0; !waiting.empty();) {
      if (before == waiting.size()) {
        if (ErrnoOf(last) != EADDRINUSE || std::chrono::steady_clock::now() > deadline) return last;
        ::usleep(10'000);
      }
      before = waiting.size();
      std::erase_if(waiting, [&](const NetworkDevice* device) {
        const Status set = SetFlags(socket, device->index, device->flags, kChosen);
        if (!set.ok()) last = Annotate(set, "bring up network device " + device->name());
        return set.ok();
      });
    }
  }
  RETURN_IF_ERROR(StartOutside(networks, outside));
  for (int waited = 0; awaits && waited < kConnectMilliseconds; ++waited) {
    bool are_connected = true;
    for (const NetworkToMake& network : networks) {
      ASSIGN_OR_RETURN(const bool connected, AreConnected(network, outside));
      are_connected = are_connected && connected;
    }
    if (are_connected) break;
    (void)::poll(nullptr, 0, 1);
  }
  return OkStatus();
}

Status CompareDevices(std::span<const NetworkToMake> networks, const OutsideDevices& outside,
                      bool exact) {
  std::vector<NumberedNetwork> all;
  for (const NetworkToMake& network : networks) all.push_back(network.where);
  for (const NetworkToMake& network : networks) {
    ASSIGN_OR_RETURN(const auto now, ReadDevices(network.where.ns_fd, all));
    for (const NetworkDevice& before : network.devices) {
      const auto device = std::ranges::find(now, before.index, &NetworkDevice::index);
      const std::string what =
          device == now.end() ? "it is gone" : Difference(before, *device, exact);
      if (what.empty() || outside.netdev.contains(before.name())) continue;
      return FailedPrecondition("network device " + before.name() +
                                " cannot be made as it was: " + what);
    }
  }
  return OkStatus();
}

}  // namespace stasis::engine
