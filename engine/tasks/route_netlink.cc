// Source  netlink(7), rtnetlink(7), linux/netlink.h; tested on 6.18
// Rule    A socket stays in the network namespace in which it was made.
#include "engine/tasks/route_netlink.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/base/namespace.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kAnswerBytes = 1 << 18;
constexpr auto kTypeMask = static_cast<std::uint16_t>(NLA_TYPE_MASK);

Status ErrorOf(std::string_view message) {
  if (message.size() < NLMSG_HDRLEN + sizeof(nlmsgerr)) return DataLoss("answer of rtnetlink");
  const int error = ReadAs<nlmsgerr>(message.substr(NLMSG_HDRLEN)).error;
  return error == 0 ? OkStatus() : SyscallError(-error, "rtnetlink");
}

// Adds the messages of one datagram; true when this was the last.
Result<bool> AddAll(std::string_view datagram, std::vector<std::string>& found) {
  while (datagram.size() >= NLMSG_HDRLEN) {
    const auto header = ReadAs<nlmsghdr>(datagram);
    if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > datagram.size()) break;
    const std::string_view message = datagram.substr(0, header.nlmsg_len);
    if (header.nlmsg_type == NLMSG_DONE) return true;
    if (header.nlmsg_type == NLMSG_ERROR) {
      RETURN_IF_ERROR(ErrorOf(message));
    } else {
      found.emplace_back(message);
    }
    datagram.remove_prefix(std::min<std::size_t>(NLMSG_ALIGN(header.nlmsg_len), datagram.size()));
  }
  return false;
}

}  // namespace

Attributes ParseAttributes(std::string_view bytes) {
  Attributes attributes;
  while (bytes.size() >= sizeof(rtattr)) {
    const auto header = ReadAs<rtattr>(bytes);
    if (header.rta_len < sizeof(rtattr) || header.rta_len > bytes.size()) break;
    attributes.push_back(
        {static_cast<std::uint16_t>(header.rta_type & kTypeMask),
         std::string(bytes.substr(RTA_LENGTH(0), header.rta_len - RTA_LENGTH(0)))});
    bytes.remove_prefix(std::min<std::size_t>(RTA_ALIGN(header.rta_len), bytes.size()));
  }
  return attributes;
}

std::string ToBytes(const Attributes& attributes) {
  std::string bytes;
  for (const Attribute& attribute : attributes) {
    rtattr header = {};
    header.rta_len = static_cast<std::uint16_t>(RTA_LENGTH(attribute.bytes.size()));
    header.rta_type = attribute.type;
    Append(bytes, header);
    bytes += attribute.bytes;
    bytes.resize(RTA_ALIGN(bytes.size()));
  }
  return bytes;
}

const std::string* Find(const Attributes& attributes, std::uint16_t type) {
  const auto found = std::ranges::find(attributes, type, &Attribute::type);
  return found == attributes.end() ? nullptr : &found->bytes;
}

std::uint32_t NumberOf(const Attributes& attributes, std::uint16_t type) {
  const std::string* const bytes = Find(attributes, type);
  return bytes == nullptr || bytes->size() < sizeof(std::uint32_t) ? 0
                                                                   : ReadAs<std::uint32_t>(*bytes);
}

std::string MakeMessage(std::uint16_t type, std::string_view body, const Attributes& attributes) {
  std::string rest(body);
  rest.resize(NLMSG_ALIGN(rest.size()));
  rest += ToBytes(attributes);
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<std::uint32_t>(NLMSG_HDRLEN + rest.size());
  header.nlmsg_type = type;
  std::string message;
  Append(message, header);
  return message + rest;
}

Result<RouteSocket> RouteSocket::Open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return SyscallError(errno, "socket of rtnetlink");
  return RouteSocket(std::move(fd));
}

Result<RouteSocket> RouteSocket::OpenIn(int ns_fd) {
  Result<RouteSocket> made = Internal("no socket");
  RETURN_IF_ERROR(InNamespace(ns_fd, CLONE_NEWNET, [&made] {
    made = Open();
    return made.status();
  }));
  return made;
}

Result<std::vector<std::string>> RouteSocket::Dump(std::uint16_t asked,
                                                   std::string_view body) const {
  std::string request = MakeMessage(asked, body, {});
  auto header = ReadAs<nlmsghdr>(request);
  header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  std::memcpy(request.data(), &header, sizeof(header));
  if (::send(fd_.get(), request.data(), request.size(), 0) < 0) {
    return SyscallError(errno, "ask rtnetlink");
  }
  std::vector<std::string> found;
  std::string answer(kAnswerBytes, '\0');
  while (true) {
    const ssize_t got = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    if (got < 0) return SyscallError(errno, "answer of rtnetlink");
    ASSIGN_OR_RETURN(const bool is_last,
                     AddAll({answer.data(), static_cast<std::size_t>(got)}, found));
    if (is_last) return found;
  }
}

Status RouteSocket::Send(std::string message, std::uint16_t type, int flags) const {
  auto header = ReadAs<nlmsghdr>(message);
  header.nlmsg_type = type;
  header.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  std::memcpy(message.data(), &header, sizeof(header));
  if (::send(fd_.get(), message.data(), message.size(), 0) < 0) {
    return SyscallError(errno, "send to rtnetlink");
  }
  alignas(nlmsghdr) char answer[16384];
  const ssize_t got = ::recv(fd_.get(), answer, sizeof(answer), 0);
  if (got < 0) return SyscallError(errno, "answer of rtnetlink");
  return ErrorOf({answer, static_cast<std::size_t>(got)});
}

Status RouteSocket::Send(std::string_view body, const Attributes& attributes, std::uint16_t type,
                         int flags) const {
  return Send(MakeMessage(type, body, attributes), type, flags);
}

Result<std::string> RouteSocket::Ask(std::string_view body, const Attributes& attributes,
                                     std::uint16_t type) const {
  std::string request = MakeMessage(type, body, attributes);
  auto header = ReadAs<nlmsghdr>(request);
  header.nlmsg_flags = NLM_F_REQUEST;
  std::memcpy(request.data(), &header, sizeof(header));
  if (::send(fd_.get(), request.data(), request.size(), 0) < 0) {
    return SyscallError(errno, "ask rtnetlink");
  }
  std::string answer(kAnswerBytes, '\0');
  const ssize_t got = ::recv(fd_.get(), answer.data(), answer.size(), 0);
  if (got < static_cast<ssize_t>(NLMSG_HDRLEN)) {
    return SyscallError(got < 0 ? errno : EPROTO, "answer of rtnetlink");
  }
  answer.resize(static_cast<std::size_t>(got));
  if (ReadAs<nlmsghdr>(answer).nlmsg_type == NLMSG_ERROR) {
    RETURN_IF_ERROR(ErrorOf(answer));
    return DataLoss("answer of rtnetlink");
  }
  return answer;
}

}  // namespace stasis::engine
