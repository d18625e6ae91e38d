// Source  rtnetlink(7), netlink(7), linux/fib_rules.h, linux/neighbour.h; tested on 6.18
// Rule    What RTM_GETADDR, RTM_GETROUTE, RTM_GETRULE and RTM_GETNEIGH give is what RTM_NEW… takes, RTM_DEL… too.
// Rule    The kernel makes some of these itself, such as the routes to an address: these are there already, or come with
//         what they depend on. A route through a gateway needs the one to the gateway first.
// Rule    An IPv6 address is tentative until a worker of the kernel's has looked at it, also on the loopback device; until
//         then nobody can bind to it (addrconf_dad_work() in net/ipv6/addrconf.c).
// Rule    Without a lifetime (IFA_CACHEINFO) an address is permanent: one that was not does not become the same.
#include "engine/tasks/network_tables.h"

#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <set>
#include <string_view>

#include "engine/base/unique_fd.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kAnswerBytes = 1 << 18;
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

template <typename T>
T ReadAs(std::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

template <typename T>
void Append(std::string& text, const T& value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

constexpr std::uint32_t kPassingFlags = IFA_F_TENTATIVE | IFA_F_DADFAILED;

// The message without what changes by itself; empty for one that is not the owner's to make.
std::string Plain(const Table& table, std::string_view message) {
  nlmsghdr header = ReadAs<nlmsghdr>(message);
  message.remove_prefix(NLMSG_HDRLEN);
  const std::size_t body_bytes = NLMSG_ALIGN(table.body_bytes);
  if (message.size() < body_bytes) return {};
  std::string body(message.substr(0, body_bytes));
  message.remove_prefix(body_bytes);
  if (table.made == RTM_NEWROUTE) {
    auto route = ReadAs<rtmsg>(body);
    if ((route.rtm_flags & RTM_F_CLONED) != 0) return {};
    route.rtm_flags &= RTNH_F_ONLINK;
    std::memcpy(body.data(), &route, sizeof(route));
  }
  if (table.made == RTM_NEWADDR) {
    auto address = ReadAs<ifaddrmsg>(body);
    address.ifa_flags = static_cast<std::uint8_t>(address.ifa_flags & ~kPassingFlags);
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
        const std::uint32_t lasting = flags & ~kPassingFlags;
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

bool IsTentative(const Table& table, std::string_view message) {
  if (table.made != RTM_NEWADDR) return false;
  return (ReadAs<ifaddrmsg>(message.substr(NLMSG_HDRLEN)).ifa_flags & IFA_F_TENTATIVE) != 0;
}

Result<UniqueFd> Open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return SyscallError(errno, "socket of rtnetlink");
  return fd;
}

Status ErrorOf(std::string_view message) {
  const int error = ReadAs<nlmsgerr>(message.substr(NLMSG_HDRLEN)).error;
  return error == 0 ? OkStatus() : SyscallError(-error, "rtnetlink");
}

// Adds the messages of one datagram; true when this was the last.
Result<bool> AddAll(std::string_view datagram, const Table& table, std::vector<std::string>& found,
                    bool& is_tentative) {
  while (datagram.size() >= NLMSG_HDRLEN) {
    const auto header = ReadAs<nlmsghdr>(datagram);
    if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > datagram.size()) break;
    const std::string_view message = datagram.substr(0, header.nlmsg_len);
    if (header.nlmsg_type == NLMSG_DONE) return true;
    if (header.nlmsg_type == NLMSG_ERROR) RETURN_IF_ERROR(ErrorOf(message));
    if (header.nlmsg_type == table.made && message.size() >= NLMSG_HDRLEN + table.body_bytes) {
      is_tentative = is_tentative || IsTentative(table, message);
      std::string plain = Plain(table, message);
      if (!plain.empty()) found.push_back(std::move(plain));
    }
    datagram.remove_prefix(std::min<std::size_t>(NLMSG_ALIGN(header.nlmsg_len), datagram.size()));
  }
  return false;
}

Result<std::vector<std::string>> ReadTable(const Table& table, bool* is_tentative = nullptr) {
  bool any_is_tentative = false;
  ASSIGN_OR_RETURN(const UniqueFd fd, Open());
  std::string request;
  const std::size_t length = NLMSG_HDRLEN + NLMSG_ALIGN(table.body_bytes);
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<std::uint32_t>(length);
  header.nlmsg_type = table.asked;
  header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  Append(request, header);
  request.resize(length);  // of all families
  if (::send(fd.get(), request.data(), request.size(), 0) < 0) {
    return SyscallError(errno, "ask rtnetlink");
  }
  std::vector<std::string> found;
  std::string answer(kAnswerBytes, '\0');
  while (true) {
    const ssize_t got = ::recv(fd.get(), answer.data(), answer.size(), 0);
    if (got < 0) return SyscallError(errno, "answer of rtnetlink");
    ASSIGN_OR_RETURN(const bool is_last, AddAll({answer.data(), static_cast<std::size_t>(got)},
                                                table, found, any_is_tentative));
    if (is_last) break;
  }
  std::ranges::sort(found);
  if (is_tentative != nullptr) *is_tentative = any_is_tentative;
  return found;
}

Status Send(int fd, std::string message, std::uint16_t type, int flags) {
  auto header = ReadAs<nlmsghdr>(message);
  header.nlmsg_type = type;
  header.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  std::memcpy(message.data(), &header, sizeof(header));
  if (::send(fd, message.data(), message.size(), 0) < 0) {
    return SyscallError(errno, "send to rtnetlink");
  }
  alignas(nlmsghdr) char answer[8192];
  const ssize_t got = ::recv(fd, answer, sizeof(answer), 0);
  if (got < static_cast<ssize_t>(NLMSG_HDRLEN + sizeof(nlmsgerr))) {
    return SyscallError(got < 0 ? errno : EPROTO, "answer of rtnetlink");
  }
  return ErrorOf({answer, static_cast<std::size_t>(got)});
}

std::vector<std::string> Difference(const std::vector<std::string>& all,
                                    const std::vector<std::string>& without) {
  std::vector<std::string> rest;
  std::ranges::set_difference(all, without, std::back_inserter(rest));
  return rest;
}

Status MakeTable(const Table& table, const std::vector<std::string>& wanted) {
  ASSIGN_OR_RETURN(const UniqueFd fd, Open());
  ASSIGN_OR_RETURN(std::vector<std::string> now, ReadTable(table));
  for (const std::string& message : Difference(now, wanted)) {
    (void)Send(fd.get(), message, table.deleted, 0);  // it may have gone with another
  }
  Status last;
  for (std::size_t missing = 0;;) {
    ASSIGN_OR_RETURN(now, ReadTable(table));
    const std::vector<std::string> rest = Difference(wanted, now);
    if (rest.empty() || rest.size() == missing) break;
    missing = rest.size();
    for (const std::string& message : rest) {
      const Status made = Send(fd.get(), message, table.made, table.flags);
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
  for (const Table& table : kTables) {
    ASSIGN_OR_RETURN(tables.*table.messages, ReadTable(table));
  }
  return tables;
}

Status RestoreNetworkTables(const NetworkTables& wanted) {
  for (const Table& table : kTables) {
    std::vector<std::string> messages = wanted.*table.messages;
    std::ranges::sort(messages);
    RETURN_IF_ERROR(MakeTable(table, messages));
    // The routes to an address come with it, once it is looked at.
    if (table.made == RTM_NEWADDR) RETURN_IF_ERROR(AwaitAddresses());
  }
  return OkStatus();
}

Status AwaitAddresses() {
  for (int waited = 0; waited < kSettleMilliseconds; ++waited) {
    bool is_tentative = false;
    RETURN_IF_ERROR(ReadTable(kTables[0], &is_tentative).status());
    if (!is_tentative) break;
    (void)::poll(nullptr, 0, 1);
  }
  return OkStatus();
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
