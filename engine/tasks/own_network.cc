// Source  netdevice(7), rtnetlink(7); tested on 6.18
// Rule    What is set for a device acts on its addresses (disable_ipv6, addr_gen_mode in net/ipv6/addrconf.c), so all is set
//         before it comes up. Addresses that come up are looked for elsewhere for a second or more, unless nobody wants
//         that (accept_dad).
// Rule    Rules may drop the very packets by which a connection is made again (files/tcp_connection.cc): where nothing but
//         the tree sends, they come after its sockets, and before it runs.
// Rule    All devices are made before any comes up: one may be joined with that of another namespace.
#include "engine/tasks/own_network.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/image/image_file.h"
#include "engine/tasks/bridge_tables.h"
#include "engine/tasks/firewall.h"
#include "engine/tasks/make_devices.h"
#include "engine/tasks/net_settings.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kLinkMagic = 0x7374a716;  // ours

struct Stream {
  const char* name;
  std::uint32_t magic;
  std::vector<std::string> NetworkTables::* messages;
};
constexpr Stream kStreams[] = {{"ifaddr", kAddressMagic, &NetworkTables::addresses},
                               {"rule", kRuleMagic, &NetworkTables::rules},
                               {"route", kRouteMagic, &NetworkTables::routes},
                               {"stasis-neighbour", kNeighbourMagic, &NetworkTables::neighbours}};

struct NetworkUnderWay {
  NumberedNetwork where;
  const OwnNetwork* network = nullptr;
  bool has_tables = true;  // else of a checkpoint from before these were in it
};

bool HasDevices(const OwnNetwork& network) { return network.devices.size() > 1; }

// Whether packets come to it that no process of the tree has sent.
bool IsReached(const OwnNetwork& network) {
  return std::ranges::any_of(network.devices, [](const NetworkDevice& device) {
    return device.kind == "tun" ||
           NumberOf(device.attributes, IFLA_LINK_NETNSID) == kOutsideNetwork;
  });
}

Status Named(const Status& status, std::size_t count, const NetworkUnderWay& one) {
  return count == 1 ? status : Annotate(status, "network " + std::to_string(one.where.number));
}

// What depends on its devices, which are up.
Status MakeTables(const NetworkUnderWay& one) {
  if (!one.has_tables) return OkStatus();
  return InNamespace(one.where.ns_fd, CLONE_NEWNET,
                     [&] { return RestoreNetworkTables(one.network->tables); });
}

// Those that act on a device as it comes up.
image::NetnsEntry SettingsOfDevices(const image::NetnsEntry& entry) {
  image::NetnsEntry some;
  for (const image::NetSetting& setting : entry.stasis_settings()) {
    const std::string& name = setting.name();
    if (name.find("/conf/") != std::string::npos) *some.add_stasis_settings() = setting;
  }
  return some;
}

// All but firewalls, and what is to be set in the end.
Status Make(std::span<const NetworkUnderWay> networks, const OutsideDevices& outside, bool tries) {
  std::vector<NetworkToMake> devices;
  for (const NetworkUnderWay& one : networks) devices.push_back({one.where, one.network->devices});
  RETURN_IF_ERROR(MakeDevices(devices, outside));
  std::vector<std::pair<int, image::NetnsEntry>> looks;
  for (const NetworkUnderWay& one : networks) {
    if (!HasDevices(*one.network)) continue;
    const image::NetnsEntry of_devices = SettingsOfDevices(one.network->entry);
    if (of_devices.stasis_settings_size() > 0) {
      std::vector<std::string> told_later;
      RETURN_IF_ERROR(RestoreNetSettings(one.where.ns_fd, of_devices, told_later));
    }
    std::set<std::string> looking;
    const std::set<std::uint32_t> tentative = TentativeDevices(one.network->tables);
    for (const NetworkDevice& device : one.network->devices) {
      if (tentative.contains(device.index)) looking.insert(device.name());
    }
    ASSIGN_OR_RETURN(image::NetnsEntry before, StopLookingForDuplicates(one.where.ns_fd, looking));
    looks.emplace_back(one.where.ns_fd, std::move(before));
  }
  RETURN_IF_ERROR(StartDevices(devices, outside, !tries));
  for (const NetworkUnderWay& one : networks) {
    RETURN_IF_ERROR(Named(MakeTables(one), networks.size(), one));
  }
  RETURN_IF_ERROR(CompareDevices(devices, outside, tries));
  for (const auto& [ns_fd, before] : looks) {
    std::vector<std::string> none;
    if (before.stasis_settings_size() > 0) RETURN_IF_ERROR(RestoreNetSettings(ns_fd, before, none));
  }
  return OkStatus();
}

NetworkDevice Loopback(bool is_up) {
  NetworkDevice device;
  device.index = 1;
  device.type = ARPHRD_LOOPBACK;
  device.flags = IFF_LOOPBACK;
  if (is_up) device.flags |= IFF_UP;
  device.attributes.push_back({IFLA_IFNAME, std::string("lo\0", 3)});
  return device;
}

Status LoadDevices(std::uint32_t number, const ImageSource& source, OwnNetwork& network) {
  const std::string name = ImageName("stasis-link", number);
  if (!source.Size(name).ok()) {
    network.devices.push_back(Loopback(network.entry.stasis_loopback_up()));
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string bytes, source.Get(name));
  ASSIGN_OR_RETURN(const std::vector<std::string> messages, FromStream(kLinkMagic, bytes));
  ASSIGN_OR_RETURN(const auto entries, ReadRecords<image::NetDeviceEntry>(
                                           source, ImageName("netdev", number), "netdev"));
  for (const std::string& message : messages) {
    ASSIGN_OR_RETURN(NetworkDevice device, ToDevice(message));
    const auto entry = std::ranges::find(entries, device.index, &image::NetDeviceEntry::ifindex);
    if (entry != entries.end() && entry->has_tun()) device.tun = entry->tun();
    network.devices.push_back(std::move(device));
  }
  return OkStatus();
}

Result<std::pair<OwnNetwork, bool>> Load(std::uint32_t number, const ImageSource& source) {
  OwnNetwork network;
  ASSIGN_OR_RETURN(network.entry,
                   ReadOne<image::NetnsEntry>(source, ImageName("netns", number), "netns"));
  RETURN_IF_ERROR(LoadDevices(number, source, network));
  bool has_tables = false;
  for (const Stream& stream : kStreams) {
    const std::string name = ImageName(stream.name, number);
    if (!source.Size(name).ok()) continue;
    ASSIGN_OR_RETURN(const std::string bytes, source.Get(name));
    ASSIGN_OR_RETURN(network.tables.*stream.messages, FromStream(stream.magic, bytes));
    has_tables = true;
  }
  return std::pair(std::move(network), has_tables);
}

}  // namespace

Result<OwnNetwork> ReadOwnNetwork(const NumberedNetwork& where,
                                  std::span<const NumberedNetwork> all, const FindTun& find_tun) {
  OwnNetwork network;
  ASSIGN_OR_RETURN(network.devices, ReadDevices(where.ns_fd, all));
  for (NetworkDevice& device : network.devices) {
    if (device.is_loopback()) network.entry.set_stasis_loopback_up((device.flags & IFF_UP) != 0);
    if (device.kind == "tun") RETURN_IF_ERROR(ReadTunDevice(where.ns_fd, device, find_tun));
  }
  const Status read = InNamespace(where.ns_fd, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(network.tables, ReadNetworkTables());
    return OkStatus();
  });
  RETURN_IF_ERROR(read);
  ASSIGN_OR_RETURN(const auto firewall, ReadFirewall(where.ns_fd));
  if (firewall) *network.entry.mutable_stasis_firewall() = *firewall;
  RETURN_IF_ERROR(ReadNetSettings(where.ns_fd, network.entry));
  return network;
}

Status TryOwnNetworks(std::span<const NetworkToTry> networks) {
  if (networks.empty()) return OkStatus();
  std::vector<UniqueFd> made;
  std::vector<NetworkUnderWay> under_way;
  for (const NetworkToTry& one : networks) {
    ASSIGN_OR_RETURN(UniqueFd ns, MakeNetwork(one.where.ns_fd));
    under_way.push_back({{one.where.number, ns.get()}, one.network});
    made.push_back(std::move(ns));
  }
  ASSIGN_OR_RETURN(const UniqueFd elsewhere, MakeNetwork(networks.front().where.ns_fd));
  OutsideDevices outside;
  outside.ns_fd = elsewhere.get();
  outside.stands_in = true;
  const Status tried = Make(under_way, outside, true);
  if (!tried.ok()) return Unimplemented(Message(tried));
  for (std::size_t i = 0; i < networks.size(); ++i) {
    if (!HasDevices(*networks[i].network)) continue;
    ASSIGN_OR_RETURN(const auto before, ReadBridgeTables(networks[i].where.ns_fd));
    ASSIGN_OR_RETURN(const auto now, ReadBridgeTables(made[i].get()));
    if (before == now) continue;
    return Unimplemented(
        "it has a bridge with VLANs, addresses or groups that somebody told it (bridge vlan, fdb, "
        "mdb)");
  }
  return OkStatus();
}

Status WriteOwnNetwork(const OwnNetwork& network, std::uint32_t number, ImageSink& sink) {
  ImageFileBuilder devices("netdev");
  std::vector<std::string> messages;
  for (const NetworkDevice& device : network.devices) {
    RETURN_IF_ERROR(devices.Add(ToNetDeviceEntry(device, number)));
    messages.push_back(ToMessage(device));
  }
  RETURN_IF_ERROR(sink.Put(ImageName("netdev", number), devices.bytes()));
  RETURN_IF_ERROR(sink.Put(ImageName("stasis-link", number), ToStream(kLinkMagic, messages)));
  for (const Stream& stream : kStreams) {
    RETURN_IF_ERROR(sink.Put(ImageName(stream.name, number),
                             ToStream(stream.magic, network.tables.*stream.messages)));
  }
  return OkStatus();
}

Result<bool> CanMakeNetwork(std::uint32_t number, const ImageSource& source) {
  ASSIGN_OR_RETURN(const auto entry,
                   ReadOne<image::NetnsEntry>(source, ImageName("netns", number), "netns"));
  return entry.has_stasis_loopback_up();
}

Status MakeOwnNetworks(std::span<const EmptyNetwork> networks, const ImageSource& source,
                       const std::vector<std::string>& external,
                       std::vector<PendingFirewall>& firewalls, std::vector<std::string>& notes) {
  if (networks.empty()) return OkStatus();
  ASSIGN_OR_RETURN(OutsideDevices outside, ParseOutsideDevices(external));
  ASSIGN_OR_RETURN(const UniqueFd ours, OpenAt(AT_FDCWD, "/proc/thread-self/ns/net", O_RDONLY));
  outside.ns_fd = ours.get();
  std::vector<std::pair<OwnNetwork, bool>> loaded;
  for (const EmptyNetwork& one : networks) {
    ASSIGN_OR_RETURN(loaded.emplace_back(), Load(one.number, source));
  }
  std::vector<NetworkUnderWay> under_way;
  under_way.reserve(networks.size());
  for (std::size_t i = 0; i < networks.size(); ++i) {
    under_way.push_back(
        {{networks[i].number, networks[i].ns.get()}, &loaded[i].first, loaded[i].second});
  }
  RETURN_IF_ERROR(Make(under_way, outside, false));
  for (const NetworkUnderWay& one : under_way) {
    const image::NetnsEntry& entry = one.network->entry;
    if (entry.has_stasis_firewall() && IsReached(*one.network)) {
      RETURN_IF_ERROR(RestoreFirewall(one.where.ns_fd, entry.stasis_firewall()));
    } else if (entry.has_stasis_firewall()) {
      UniqueFd ns(::fcntl(one.where.ns_fd, F_DUPFD_CLOEXEC, 0));
      if (!ns) return SyscallError(errno, "F_DUPFD_CLOEXEC");
      firewalls.push_back({.ns = std::move(ns), .rules = entry.stasis_firewall()});
    }
    RETURN_IF_ERROR(RestoreNetSettings(one.where.ns_fd, entry, notes));
  }
  return OkStatus();
}

Status MakeFirewalls(std::span<const PendingFirewall> firewalls) {
  for (const PendingFirewall& one : firewalls) {
    RETURN_IF_ERROR(RestoreFirewall(one.ns.get(), one.rules));
  }
  return OkStatus();
}

}  // namespace stasis::engine
