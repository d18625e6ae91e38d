// Source  rtnetlink(7), netlink(7), linux/fib_rules.h, linux/neighbour.h; tested on 6.18
// Rule    What RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE and RTM_GETNEIGH give is what RTM_NEW… takes, RTM_DEL… too.
// Rule    The kernel makes some of these itself, such as the routes to an address: these are there already, or come with
//         what they depend on. A route through a gateway needs the one to the gateway first.
// Rule    An IPv6 address is tentative until a worker of the kernel's has looked at it, also on the loopback device; until
//         then nobody can bind to it (addrconf_dad_work() in net/ipv6/addrconf.c).
// Rule    The kernel's own IPv6 route to an address comes when that has been looked at, which on a device without a carrier
//         is later: it is the kernel's to make.
// Rule    Without a lifetime (IFA_CACHEINFO) an address is permanent: one that was not does not become the same.
#include "engine/tasks/network_tables.h"

#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>
#include <string_view>
#include <utility>

#include "engine/tasks/route_netlink.h"

namespace stasis::engine {
namespace {

constexpr int kSettleMilliseconds = 1000;
constexpr std::uint16_t kTypeMask = static_cast<std::uint16_t>(NLA_TYPE_MASK);

struct Table {
  const char* name;
  std::vector<std::string> NetworkTables::* messages;
  std::uint16_t made, deleted, asked;  // types of messages
  int flags;                           // of one that makes
  std::size_t body_bytes;              // before attributes
  std::set<std::uint16_t> passing;     // attributes that change by themselves
};

const Table kTables[] = {
    {"addresses",
     &NetworkTables::addresses,
     RTM_NEWADDR,
     RTM_DELADDR,
     RTM_GETADDR,
     NLM_F_CREATE | NLM_F_EXCL,
     sizeof(ifaddrmsg),
     {IFA_CACHEINFO}},
    {"neighbours",
     &NetworkTables::neighbours,
     RTM_NEWNEIGH,
     RTM_DELNEIGH,
     RTM_GETNEIGH,
     NLM_F_CREATE | NLM_F_EXCL,
     sizeof(ndmsg),
     {NDA_CACHEINFO, NDA_PROBES}},
    {"rules",
     &NetworkTables::rules,
     RTM_NEWRULE,
     RTM_DELRULE,
     RTM_GETRULE,
     NLM_F_CREATE | NLM_F_EXCL,
     sizeof(fib_rule_hdr),
     {}},
    {"routes",
     &NetworkTables::routes,
     RTM_NEWROUTE,
     RTM_DELROUTE,
     RTM_GETROUTE,
     NLM_F_CREATE | NLM_F_APPEND,
     sizeof(rtmsg),
     {RTA_CACHEINFO}},
};

constexpr std::uint32_t kPassingFlags = IFA_F_TENTATIVE | IFA_F_DADFAILED;

// The message without what changes by itself; empty for one that is not the owner's to make. `passing_flags`: of an address.
std::string Plain(const Table& table, std::string_view message,
                  std::uint32_t passing_flags = kPassingFlags) {
  nlmsghdr header = ReadAs<nlmsghdr>(message);
  message.remove_prefix(NLMSG_HDRLEN);
  const std::size_t body_bytes = NLMSG_ALIGN(table.body_bytes);
  if (message.size() < body_bytes) return {};
  std::string body(message.substr(0, body_bytes));
  message.remove_prefix(body_bytes);
  if (table.made == RTM_NEWROUTE) {
    auto route = ReadAs<rtmsg>(body);
    if ((route.rtm_flags & RTM_F_CLONED) != 0) return {};
    const bool comes_by_itself = route.rtm_family == AF_INET6 &&
                                 route.rtm_protocol == RTPROT_KERNEL &&
                                 (route.rtm_type == RTN_LOCAL || route.rtm_type == RTN_ANYCAST);
    if (comes_by_itself) return {};
    route.rtm_flags &= RTNH_F_ONLINK;
    std::memcpy(body.data(), &route, sizeof(route));
  }
  if (table.made == RTM_NEWADDR) {
    auto address = ReadAs<ifaddrmsg>(body);
    address.ifa_flags = static_cast<std::uint8_t>(address.ifa_flags & ~passing_flags);
    std::memcpy(body.data(), &address, sizeof(address));
  }
  if (table.made == RTM_NEWNEIGH && (ReadAs<ndmsg>(body).ndm_state & NUD_PERMANENT) == 0) return {};
  while (message.size() >= sizeof(rtattr)) {
    const auto attribute = ReadAs<rtattr>(message);
    if (attribute.rta_len < sizeof(rtattr) || attribute.rta_len > message.size()) break;
    const std::size_t whole = std::min<std::size_t>(RTA_ALIGN(attribute.rta_len), message.size());
    if (!table.passing.contains(attribute.rta_type & kTypeMask)) {
      const std::size_t start = body.size();
      body += message.substr(0, attribute.rta_len);
      body.resize(NLMSG_ALIGN(body.size()));
      const bool has_flags = table.made == RTM_NEWADDR && attribute.rta_type == IFA_FLAGS &&
                             attribute.rta_len == RTA_LENGTH(sizeof(kPassingFlags));
      if (has_flags) {
        const std::size_t at = start + RTA_LENGTH(0);
        const std::uint32_t flags = ReadAs<std::uint32_t>(std::string_view(body).substr(at));
        const std::uint32_t lasting = flags & ~passing_flags;
        std::memcpy(body.data() + at, &lasting, sizeof(lasting));
      }
    }
    message.remove_prefix(whole);
  }
  header = {};
  header.nlmsg_len = static_cast<std::uint32_t>(NLMSG_HDRLEN + body.size());
  header.nlmsg_type = table.made;
  std::string plain;
  Append(plain, header);
  return plain + body;
}

bool IsTentative(std::string_view message) {
  constexpr std::uint8_t kBoth = IFA_F_TENTATIVE | IFA_F_DADFAILED;
  const auto address = ReadAs<ifaddrmsg>(message.substr(NLMSG_HDRLEN));
  return (address.ifa_flags & kBoth) == IFA_F_TENTATIVE;
}

// Devices that are up; `at_once`: only those on which nothing is to be found out about an address.
Result<std::set<std::uint32_t>> ReadUp(const RouteSocket& socket, bool at_once) {
  ASSIGN_OR_RETURN(const auto links,
                   socket.Dump(RTM_GETLINK, std::string(sizeof(ifinfomsg), '\0')));
  std::set<std::uint32_t> up;
  for (const std::string& link : links) {
    if (link.size() < NLMSG_HDRLEN + sizeof(ifinfomsg)) continue;
    const auto head = ReadAs<ifinfomsg>(std::string_view(link).substr(NLMSG_HDRLEN));
    const bool is_quick = (head.ifi_flags & (IFF_LOOPBACK | IFF_NOARP)) != 0;
    const bool counts = (head.ifi_flags & IFF_UP) != 0 && (is_quick || !at_once);
    if (counts) up.insert(static_cast<std::uint32_t>(head.ifi_index));
  }
  return up;
}

// Waits until no address on devices of `up` is tentative but those that are so in `wanted`, or for a second.
Status Await(const RouteSocket& socket, const std::set<std::uint32_t>& up,
             const std::set<std::string>& wanted) {
  for (int waited = 0; waited < kSettleMilliseconds; ++waited) {
    ASSIGN_OR_RETURN(const auto addresses,
                     socket.Dump(RTM_GETADDR, std::string(sizeof(ifaddrmsg), '\0')));
    const bool waits = std::ranges::any_of(addresses, [&](const std::string& message) {
      if (message.size() < NLMSG_HDRLEN + sizeof(ifaddrmsg) || !IsTentative(message)) return false;
      const auto address = ReadAs<ifaddrmsg>(std::string_view(message).substr(NLMSG_HDRLEN));
      return up.contains(address.ifa_index) && !wanted.contains(Plain(kTables[0], message));
    });
    if (!waits) break;
    (void)::poll(nullptr, 0, 1);
  }
  return OkStatus();
}

Result<std::vector<std::string>> ReadTable(const RouteSocket& socket, const Table& table,
                                           std::uint32_t passing_flags = kPassingFlags) {
  ASSIGN_OR_RETURN(const std::vector<std::string> messages,
                   socket.Dump(table.asked, std::string(table.body_bytes, '\0')));  // all families
  std::vector<std::string> found;
  for (const std::string& message : messages) {
    const bool is_whole = message.size() >= NLMSG_HDRLEN + table.body_bytes;
    if (!is_whole || ReadAs<nlmsghdr>(message).nlmsg_type != table.made) continue;
    std::string plain = Plain(table, message, passing_flags);
    if (!plain.empty()) found.push_back(std::move(plain));
  }
  std::ranges::sort(found);
  return found;
}

std::vector<std::string> Difference(const std::vector<std::string>& all,
                                    const std::vector<std::string>& without) {
  std::vector<std::string> rest;
  std::ranges::set_difference(all, without, std::back_inserter(rest));
  return rest;
}

Status MakeTable(const Table& table, const std::vector<std::string>& wanted) {
  ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::Open());
  ASSIGN_OR_RETURN(std::vector<std::string> now, ReadTable(socket, table));
  for (const std::string& message : Difference(now, wanted)) {
    (void)socket.Send(message, table.deleted, 0);  // it may have gone with another
  }
  Status last;
  for (std::size_t missing = 0;;) {
    ASSIGN_OR_RETURN(now, ReadTable(socket, table));
    const std::vector<std::string> rest = Difference(wanted, now);
    if (rest.empty() || rest.size() == missing) break;
    missing = rest.size();
    for (const std::string& message : rest) {
      const Status made = socket.Send(message, table.made, table.flags);
      if (!made.ok()) last = made;
    }
  }
  if (now == wanted) return OkStatus();
  return FailedPrecondition(std::string("the ") + table.name +
                            " of its network namespace cannot be made again" +
                            (last.ok() ? "" : ": " + Message(last)));
}

}  // namespace

Result<NetworkTables> ReadNetworkTables() {
  NetworkTables tables;
  ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::Open());
  ASSIGN_OR_RETURN(const std::set<std::uint32_t> up, ReadUp(socket, true));
  RETURN_IF_ERROR(Await(socket, up, {}));
  for (const Table& table : kTables) {
    ASSIGN_OR_RETURN(tables.*table.messages, ReadTable(socket, table, 0));
  }
  return tables;
}

Status RestoreNetworkTables(const NetworkTables& wanted) {
  for (const Table& table : kTables) {
    std::vector<std::string> messages;
    for (const std::string& message : wanted.*table.messages) {
      if (message.size() < NLMSG_HDRLEN + table.body_bytes) continue;
      std::string plain = Plain(table, message);
      if (!plain.empty()) messages.push_back(std::move(plain));
    }
    std::ranges::sort(messages);
    RETURN_IF_ERROR(MakeTable(table, messages));
    if (table.made != RTM_NEWADDR) continue;
    // Nobody can bind to an address before. What was tentative is so again, for as long as it takes.
    std::set<std::string> tentative;
    for (const std::string& message : wanted.addresses) {
      const bool is_whole = message.size() >= NLMSG_HDRLEN + sizeof(ifaddrmsg);
      if (is_whole && IsTentative(message)) tentative.insert(Plain(table, message));
    }
    ASSIGN_OR_RETURN(const RouteSocket socket, RouteSocket::Open());
    ASSIGN_OR_RETURN(const std::set<std::uint32_t> up, ReadUp(socket, false));
    RETURN_IF_ERROR(Await(socket, up, tentative));
  }
  return OkStatus();
}

std::set<std::uint32_t> TentativeDevices(const NetworkTables& tables) {
  std::set<std::uint32_t> devices;
  for (const std::string& message : tables.addresses) {
    if (message.size() < NLMSG_HDRLEN + sizeof(ifaddrmsg) || !IsTentative(message)) continue;
    devices.insert(ReadAs<ifaddrmsg>(std::string_view(message).substr(NLMSG_HDRLEN)).ifa_index);
  }
  return devices;
}

std::string ToStream(std::uint32_t magic, const std::vector<std::string>& messages) {
  std::string stream;
  Append(stream, magic);
  for (const std::string& message : messages) stream += message;
  return stream;
}

Result<std::vector<std::string>> FromStream(std::uint32_t magic, const std::string& stream) {
  if (stream.size() < sizeof(magic) || ReadAs<std::uint32_t>(stream) != magic) {
    return DataLoss("a saved table of the network begins with no such number");
  }
  std::vector<std::string> messages;
  for (std::string_view rest = std::string_view(stream).substr(sizeof(magic)); !rest.empty();) {
    const std::size_t length = rest.size() < NLMSG_HDRLEN ? 0 : ReadAs<nlmsghdr>(rest).nlmsg_len;
    if (length < NLMSG_HDRLEN || length > rest.size() || length != NLMSG_ALIGN(length)) {
      return DataLoss("a saved table of the network has a strange message");
    }
    messages.emplace_back(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  return messages;
}

}  // namespace stasis::engine
