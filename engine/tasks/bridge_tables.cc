// Source  rtnetlink(7), linux/if_bridge.h, linux/neighbour.h; net/bridge/br_fdb.c, br_mdb.c; tested on 6.18
// Rule    An address that a device listens to itself is shown too (NTF_SELF): it is not the bridge's.
#include "engine/tasks/bridge_tables.h"

#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <string_view>

#include "engine/tasks/route_netlink.h"

namespace stasis::engine {
namespace {

// Nothing where this kernel has no bridges.
Result<std::vector<std::string>> DumpOf(const RouteSocket& socket, std::uint16_t asked,
                                        const std::string& body) {
  Result<std::vector<std::string>> found = socket.Dump(asked, body);
  if (ErrnoOf(found.status()) == EOPNOTSUPP) return std::vector<std::string>();
  return found;
}

template <typename Head>
std::string_view AfterHead(const std::string& message, Head& head) {
  constexpr std::size_t kStart = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(Head));
  if (message.size() < kStart) return {};
  head = ReadAs<Head>(std::string_view(message).substr(NLMSG_HDRLEN));
  return std::string_view(message).substr(kStart);
}

// `own`: the addresses of bridges and ports, which a bridge knows by itself.
Status AddVlans(const RouteSocket& socket, std::vector<std::string>& tables,
                std::set<std::string>& own) {
  ifinfomsg head = {};
  head.ifi_family = AF_BRIDGE;
  std::string body;
  Append(body, head);
  Attributes filter;
  Add(filter, IFLA_EXT_MASK, std::uint32_t{RTEXT_FILTER_BRVLAN});
  ASSIGN_OR_RETURN(const auto found, DumpOf(socket, RTM_GETLINK, body + ToBytes(filter)));
  for (const std::string& message : found) {
    const Attributes attributes = ParseAttributes(AfterHead(message, head));
    const std::string* const address = Find(attributes, IFLA_ADDRESS);
    if (address != nullptr) own.insert(*address);
    const std::string* const vlans = Find(attributes, IFLA_AF_SPEC);
    if (vlans != nullptr) tables.push_back("vlan " + std::to_string(head.ifi_index) + *vlans);
  }
  return OkStatus();
}

Status AddAddresses(const RouteSocket& socket, const std::set<std::string>& own,
                    std::vector<std::string>& tables) {
  ndmsg head = {};
  head.ndm_family = AF_BRIDGE;
  std::string body;
  Append(body, head);
  ASSIGN_OR_RETURN(const auto found, DumpOf(socket, RTM_GETNEIGH, body));
  for (const std::string& message : found) {
    const Attributes attributes = ParseAttributes(AfterHead(message, head));
    const std::string* const address = Find(attributes, NDA_LLADDR);
    if (address == nullptr || own.contains(*address)) continue;
    const bool is_fixed = (head.ndm_state & (NUD_PERMANENT | NUD_NOARP)) != 0;
    if (!is_fixed || (head.ndm_flags & NTF_SELF) != 0) continue;
    std::string entry = "address " + std::to_string(head.ndm_ifindex) + " " +
                        std::to_string(head.ndm_state) + " " + std::to_string(head.ndm_flags);
    for (const Attribute& attribute : attributes) {
      const bool is_told = attribute.type == NDA_LLADDR || attribute.type == NDA_VLAN;
      if (is_told) entry += std::to_string(attribute.type) + attribute.bytes;
    }
    tables.push_back(std::move(entry));
  }
  return OkStatus();
}

void AddGroups(std::string_view bridge, std::vector<std::string>& tables) {
  for (const Attribute& one : ParseAttributes(bridge)) {
    for (const Attribute& info : ParseAttributes(one.bytes)) {
      if (info.bytes.size() < sizeof(br_mdb_entry)) continue;
      const auto entry = ReadAs<br_mdb_entry>(info.bytes);
      if (entry.state != MDB_PERMANENT) continue;
      std::string group =
          "group " + std::to_string(entry.ifindex) + " " + std::to_string(entry.vid);
      Append(group, entry.addr);
      tables.push_back(std::move(group));
    }
  }
}

Status AddGroups(const RouteSocket& socket, std::vector<std::string>& tables) {
  br_port_msg head = {};
  head.family = AF_BRIDGE;
  std::string body;
  Append(body, head);
  ASSIGN_OR_RETURN(const auto found, DumpOf(socket, RTM_GETMDB, body));
  for (const std::string& message : found) {
    for (const Attribute& bridge : ParseAttributes(AfterHead(message, head))) {
      if (bridge.type == MDBA_MDB) AddGroups(bridge.bytes, tables);
    }
  }
  return OkStatus();
}

}  // namespace

Result<std::vector<std::string>> ReadBridgeTables(int ns_fd) {
  ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::OpenIn(ns_fd));
  std::vector<std::string> tables;
  std::set<std::string> own;
  RETURN_IF_ERROR(AddVlans(socket, tables, own));
  RETURN_IF_ERROR(AddAddresses(socket, own, tables));
  RETURN_IF_ERROR(AddGroups(socket, tables));
  std::ranges::sort(tables);
  return tables;
}

}  // namespace stasis::engine
