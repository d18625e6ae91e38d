// Source  rtnetlink(7), linux/if_link.h; net/core/rtnetlink.c, net/bridge/br_netlink.c, drivers/net/macvlan.c;
//         tested on 6.18
// Rule    A device that is joined with one in another namespace says which by that one's number here (RTM_GETNSID), which
//         the kernel gives it at the latest when the device is shown.
// Rule    Tunnel modules put a device into every new network namespace, which is down until somebody wants it
//         (sysctl net.core.fb_tunnels_only_for_init_net).
// Rule    A queueing discipline that the kernel chose has no handle; one that somebody made has.
#include "engine/tasks/network_device.h"

#include <linux/if_link.h>
#include <linux/net_namespace.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

namespace stasis::engine {
namespace {

constexpr std::string_view kFallbackTunnels[] = {
    "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0", "sit0"};

constexpr std::uint32_t kLastingFlags = IFF_UP | IFF_BROADCAST | IFF_DEBUG | IFF_LOOPBACK |
                                        IFF_POINTOPOINT | IFF_NOTRAILERS | IFF_NOARP | IFF_PROMISC |
                                        IFF_ALLMULTI | IFF_MULTICAST | IFF_DYNAMIC;

// What of a device is kept. Those that nothing here sets show at once when they are not as a new device has them.
const std::set<std::uint16_t> kKept = {
    IFLA_ADDRESS,       IFLA_BROADCAST,     IFLA_IFNAME,       IFLA_MTU,         IFLA_LINK,
    IFLA_MASTER,        IFLA_TXQLEN,        IFLA_LINKMODE,     IFLA_IFALIAS,     IFLA_GROUP,
    IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_LINK_NETNSID, IFLA_PROTO_DOWN,  IFLA_GSO_MAX_SEGS,
    IFLA_GSO_MAX_SIZE,  IFLA_XDP,           IFLA_PROP_LIST,    IFLA_GRO_MAX_SIZE};

struct Kind {
  std::string_view name;
  std::set<std::uint16_t> passing;  // of its data, which changes by itself
  std::set<std::uint16_t> shown;    // no request may have
};
const Kind kKinds[] = {
    {"bridge",
     {IFLA_BR_HELLO_TIMER, IFLA_BR_TCN_TIMER, IFLA_BR_TOPOLOGY_CHANGE_TIMER, IFLA_BR_GC_TIMER,
      IFLA_BR_ROOT_ID, IFLA_BR_BRIDGE_ID, IFLA_BR_ROOT_PORT, IFLA_BR_ROOT_PATH_COST,
      IFLA_BR_TOPOLOGY_CHANGE, IFLA_BR_TOPOLOGY_CHANGE_DETECTED, IFLA_BR_PAD,
      IFLA_BR_MCAST_QUERIER_STATE, 48 /* IFLA_BR_FDB_N_LEARNED, Linux 6.7 */},
     {}},
    {"veth", {}, {}},
    {"macvlan", {IFLA_MACVLAN_BC_QUEUE_LEN_USED}, {IFLA_MACVLAN_MACADDR_COUNT}},
    {"dummy", {}, {}},
    {"vlan", {}, {}},
    // Whoever has it open has a queue; it lasts because somebody has it open, or says so.
    {"tun", {IFLA_TUN_NUM_QUEUES, IFLA_TUN_NUM_DISABLED_QUEUES}, {}},
};

const std::set<std::uint16_t> kPassingOfPort = {IFLA_BRPORT_STATE,
                                                IFLA_BRPORT_ROOT_ID,
                                                IFLA_BRPORT_BRIDGE_ID,
                                                IFLA_BRPORT_DESIGNATED_PORT,
                                                IFLA_BRPORT_DESIGNATED_COST,
                                                IFLA_BRPORT_ID,
                                                IFLA_BRPORT_NO,
                                                IFLA_BRPORT_TOPOLOGY_CHANGE_ACK,
                                                IFLA_BRPORT_CONFIG_PENDING,
                                                IFLA_BRPORT_MESSAGE_AGE_TIMER,
                                                IFLA_BRPORT_FORWARD_DELAY_TIMER,
                                                IFLA_BRPORT_HOLD_TIMER,
                                                IFLA_BRPORT_FLUSH,
                                                IFLA_BRPORT_PAD,
                                                IFLA_BRPORT_MCAST_EHT_HOSTS_CNT,
                                                41 /* IFLA_BRPORT_MCAST_N_GROUPS, Linux 6.3 */};

const Kind* KindOf(std::string_view name) {
  const auto* const kind = std::ranges::find(kKinds, name, &Kind::name);
  return kind == std::end(kKinds) ? nullptr : kind;
}

Attributes Without(Attributes attributes, const std::set<std::uint16_t>& types) {
  std::erase_if(attributes, [&](const Attribute& one) { return types.contains(one.type); });
  return attributes;
}

std::string Text(const std::string* bytes) {
  return bytes == nullptr ? std::string() : bytes->substr(0, bytes->find('\0'));
}

// Numbers of the images by those that the namespace has for others.
Result<std::map<std::uint32_t, std::uint32_t>> ReadNumbers(const RouteSocket& socket,
                                                           std::span<const NumberedNetwork> all) {
  std::map<std::uint32_t, std::uint32_t> numbers;
  for (const NumberedNetwork& network : all) {
    Attributes attributes;
    Add(attributes, NETNSA_FD, network.ns_fd);
    ASSIGN_OR_RETURN(const std::string answer,
                     socket.Ask(std::string(sizeof(rtgenmsg), '\0'), attributes, RTM_GETNSID));
    const std::size_t head = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(rtgenmsg));
    if (answer.size() < head) return DataLoss("answer of rtnetlink");
    const Attributes told = ParseAttributes(std::string_view(answer).substr(head));
    const std::uint32_t number = NumberOf(told, NETNSA_NSID);
    if (static_cast<std::int32_t>(number) >= 0) numbers[number] = network.number;
  }
  return numbers;
}

void TakeLinkInfo(const std::string& bytes, NetworkDevice& device) {
  const Attributes info = ParseAttributes(bytes);
  device.kind = Text(Find(info, IFLA_INFO_KIND));
  device.slave_kind = Text(Find(info, IFLA_INFO_SLAVE_KIND));
  const Kind* const kind = KindOf(device.kind);
  const std::string* const data = Find(info, IFLA_INFO_DATA);
  if (data != nullptr && kind != nullptr) {
    device.data = Without(ParseAttributes(*data), kind->passing);
  }
  const std::string* const slave = Find(info, IFLA_INFO_SLAVE_DATA);
  if (slave != nullptr) device.slave_data = Without(ParseAttributes(*slave), kPassingOfPort);
}

Result<NetworkDevice> Parse(std::string_view message) {
  constexpr std::size_t kHead = NLMSG_HDRLEN + sizeof(ifinfomsg);
  if (message.size() < kHead) return DataLoss("a strange network device");
  const auto head = ReadAs<ifinfomsg>(message.substr(NLMSG_HDRLEN));
  NetworkDevice device;
  device.index = static_cast<std::uint32_t>(head.ifi_index);
  device.flags = head.ifi_flags & (kLastingFlags | IFF_RUNNING);
  device.type = head.ifi_type;
  for (Attribute& attribute : ParseAttributes(message.substr(kHead))) {
    if (attribute.type == IFLA_LINKINFO) TakeLinkInfo(attribute.bytes, device);
    if (kKept.contains(attribute.type)) device.attributes.push_back(std::move(attribute));
  }
  std::ranges::stable_sort(device.attributes, {}, &Attribute::type);
  return device;
}

bool IsPassed(const NetworkDevice& device) {
  return (device.flags & IFF_UP) == 0 &&
         std::ranges::find(kFallbackTunnels, device.name()) != std::end(kFallbackTunnels);
}

Status CheckKind(const NetworkDevice& device) {
  if (device.is_loopback() || KindOf(device.kind) != nullptr) return OkStatus();
  return Unimplemented("it has the network device " + device.name() + " of the kind " +
                       (device.kind.empty() ? "of real ones" : device.kind));
}

Status CheckTraffic(const RouteSocket& socket, const std::vector<NetworkDevice>& devices) {
  const Result<std::vector<std::string>> found =
      socket.Dump(RTM_GETQDISC, std::string(sizeof(tcmsg), '\0'));
  if (ErrnoOf(found.status()) == EOPNOTSUPP) return OkStatus();
  RETURN_IF_ERROR(found.status());
  for (const std::string& message : *found) {
    if (message.size() < NLMSG_HDRLEN + sizeof(tcmsg)) continue;
    const auto head = ReadAs<tcmsg>(std::string_view(message).substr(NLMSG_HDRLEN));
    if (head.tcm_handle == 0) continue;
    const auto device = std::ranges::find(devices, static_cast<std::uint32_t>(head.tcm_ifindex),
                                          &NetworkDevice::index);
    return Unimplemented(
        "it has traffic control (tc qdisc) on the network device " +
        (device == devices.end() ? std::to_string(head.tcm_ifindex) : device->name()));
  }
  return OkStatus();
}

}  // namespace

std::string NetworkDevice::name() const { return Text(Find(attributes, IFLA_IFNAME)); }
std::uint32_t NetworkDevice::mtu() const { return NumberOf(attributes, IFLA_MTU); }
std::uint32_t NetworkDevice::link() const { return NumberOf(attributes, IFLA_LINK); }
std::uint32_t NetworkDevice::master() const { return NumberOf(attributes, IFLA_MASTER); }
bool NetworkDevice::is_loopback() const { return type == ARPHRD_LOOPBACK; }

Result<std::vector<NetworkDevice>> ReadDevices(int ns_fd, std::span<const NumberedNetwork> all) {
  ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::OpenIn(ns_fd));
  ASSIGN_OR_RETURN(const std::vector<std::string> messages,
                   socket.Dump(RTM_GETLINK, std::string(sizeof(ifinfomsg), '\0')));
  std::vector<NetworkDevice> devices;
  for (const std::string& message : messages) {
    if (ReadAs<nlmsghdr>(message).nlmsg_type != RTM_NEWLINK) continue;
    ASSIGN_OR_RETURN(NetworkDevice device, Parse(message));
    if (IsPassed(device)) continue;
    RETURN_IF_ERROR(CheckKind(device));
    devices.push_back(std::move(device));
  }
  RETURN_IF_ERROR(CheckTraffic(socket, devices));
  if (devices.size() < 2) return devices;  // the loopback device alone is joined with nothing
  ASSIGN_OR_RETURN(const auto numbers, ReadNumbers(socket, all));
  for (NetworkDevice& device : devices) {
    for (Attribute& attribute : device.attributes) {
      if (attribute.type != IFLA_LINK_NETNSID) continue;
      const auto number = numbers.find(NumberOf(device.attributes, IFLA_LINK_NETNSID));
      attribute.bytes.clear();
      Append(attribute.bytes, number == numbers.end() ? kOutsideNetwork : number->second);
    }
  }
  std::ranges::sort(devices, {}, &NetworkDevice::index);
  return devices;
}

std::string ToMessage(const NetworkDevice& device) {
  ifinfomsg head = {};
  head.ifi_type = device.type;
  head.ifi_index = static_cast<int>(device.index);
  head.ifi_flags = device.flags;
  std::string body;
  Append(body, head);
  Attributes attributes = device.attributes;
  Attributes info;
  if (!device.kind.empty()) {
    info.push_back({IFLA_INFO_KIND, device.kind + '\0'});
    info.push_back({IFLA_INFO_DATA, ToBytes(device.data)});
  }
  if (!device.slave_kind.empty()) {
    info.push_back({IFLA_INFO_SLAVE_KIND, device.slave_kind + '\0'});
    info.push_back({IFLA_INFO_SLAVE_DATA, ToBytes(device.slave_data)});
  }
  if (!info.empty()) attributes.push_back({IFLA_LINKINFO, ToBytes(info)});
  return MakeMessage(RTM_NEWLINK, body, attributes);
}

Result<NetworkDevice> ToDevice(std::string_view message) {
  ASSIGN_OR_RETURN(NetworkDevice device, Parse(message));
  RETURN_IF_ERROR(CheckKind(device));
  const std::string name = device.name();
  const bool is_name = !name.empty() && name.size() < IFNAMSIZ &&
                       name.find_first_of("/ \t\n") == std::string::npos && name != "." &&
                       name != "..";
  if (!is_name || device.index == 0) return DataLoss("a strange network device");
  return device;
}

namespace {

std::string DifferenceOf(const Attributes& before, const Attributes& now, bool exact,
                         const std::string& what) {
  for (const Attribute& attribute : before) {
    const std::string* const other = Find(now, attribute.type);
    const bool is_same = other == nullptr ? !exact : *other == attribute.bytes;
    if (!is_same) return what + " (attribute " + std::to_string(attribute.type) + ")";
  }
  if (exact && before.size() != now.size()) return what;
  return {};
}

}  // namespace

std::string Difference(const NetworkDevice& before, const NetworkDevice& now, bool exact) {
  if (before.index != now.index) return "its number";
  if ((before.flags & kLastingFlags) != (now.flags & kLastingFlags)) return "its flags";
  if (before.kind != now.kind || before.type != now.type) return "its kind";
  if (before.slave_kind != now.slave_kind) return "its master";
  // Numbers outside are whatever is free there. A device that lasts until its program has it open again says that it
  // does so.
  const bool is_outside = NumberOf(before.attributes, IFLA_LINK_NETNSID) == kOutsideNetwork;
  const auto passing = is_outside ? std::set<std::uint16_t>{IFLA_LINK} : std::set<std::uint16_t>();
  std::string what =
      DifferenceOf(Without(before.attributes, passing), Without(now.attributes, passing), exact,
                   "a setting of all kinds of devices");
  if (!what.empty()) return what;
  const auto lasts =
      before.kind == "tun" ? std::set<std::uint16_t>{IFLA_TUN_PERSIST} : std::set<std::uint16_t>();
  what = DifferenceOf(Without(before.data, lasts), Without(now.data, lasts), exact,
                      "a setting of its kind");
  if (!what.empty()) return what;
  return DifferenceOf(before.slave_data, now.slave_data, exact, "a setting as a port");
}

Attributes SettableData(const NetworkDevice& device) {
  const Kind* const kind = KindOf(device.kind);
  return kind == nullptr ? Attributes() : Without(device.data, kind->shown);
}

image::NetDeviceEntry ToNetDeviceEntry(const NetworkDevice& device, std::uint32_t own_number) {
  static const std::map<std::string, image::NdType> kTypes = {{"veth", image::VETH},
                                                              {"tun", image::TUN},
                                                              {"bridge", image::BRIDGE},
                                                              {"macvlan", image::MACVLAN}};
  image::NetDeviceEntry entry;
  const auto type = kTypes.find(device.kind);
  entry.set_type(device.is_loopback()   ? image::LOOPBACK
                 : type == kTypes.end() ? image::EXTLINK
                                        : type->second);
  entry.set_ifindex(device.index);
  entry.set_mtu(device.mtu());
  entry.set_flags(device.flags);
  entry.set_name(device.name());
  const std::string* const address = Find(device.attributes, IFLA_ADDRESS);
  if (address != nullptr && !device.is_loopback()) entry.set_address(*address);
  if (device.master() != 0) entry.set_master(device.master());
  if (device.kind == "macvlan") {
    entry.mutable_macvlan()->set_mode(NumberOf(device.data, IFLA_MACVLAN_MODE));
  }
  const std::string* const where = Find(device.attributes, IFLA_LINK_NETNSID);
  entry.set_peer_ifindex(device.link() == 0 ? device.index : device.link());
  if (where == nullptr) {
    entry.set_peer_nsid(own_number);
  } else if (NumberOf(device.attributes, IFLA_LINK_NETNSID) != kOutsideNetwork) {
    entry.set_peer_nsid(NumberOf(device.attributes, IFLA_LINK_NETNSID));
  }
  if (device.tun) *entry.mutable_tun() = *device.tun;
  return entry;
}

}  // namespace stasis::engine
