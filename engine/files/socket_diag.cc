// Source  sock_diag(7), net/core/sock_diag.c, net/ipv4/inet_diag.c inet_diag_msg_attrs_fill
// Rule    Of protocols without a diag module the answer is ENOENT.
#include "engine/files/socket_diag.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "engine/base/read_as.h"
#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kAnswerBytes = 65536;

// Adds what one datagram of netlink holds; true at the end of the dump.
Result<bool> AddAnswers(std::string_view bytes, std::vector<std::string>& answers) {
  while (bytes.size() >= sizeof(nlmsghdr)) {
    const auto header = ReadAs<nlmsghdr>(bytes);
    if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > bytes.size()) break;
    const std::string_view body = bytes.substr(NLMSG_HDRLEN, header.nlmsg_len - NLMSG_HDRLEN);
    if (header.nlmsg_type == NLMSG_DONE || header.nlmsg_type == NLMSG_ERROR) {
      const int error = -ReadAs<int>(body);
      if (error == ENOENT) return NotFound("no such sock_diag module");
      if (error != 0) return SyscallError(error, "sock_diag");
      return true;
    }
    answers.emplace_back(body);
    bytes.remove_prefix(std::min<std::size_t>(NLMSG_ALIGN(header.nlmsg_len), bytes.size()));
  }
  return false;
}

}  // namespace

Result<std::vector<std::string>> AskSocketDiag(const OpenFile& file,
                                               std::span<const std::byte> body) {
  ASSIGN_OR_RETURN(const UniqueFd netlink, NetlinkSocketBeside(file, NETLINK_SOCK_DIAG));
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<std::uint32_t>(NLMSG_HDRLEN + body.size());
  header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  std::string request(reinterpret_cast<const char*>(&header), sizeof(header));
  request.append(reinterpret_cast<const char*>(body.data()), body.size());
  if (::send(netlink.get(), request.data(), request.size(), 0) < 0) {
    return SyscallError(errno, "ask sock_diag");
  }
  std::vector<std::string> answers;
  std::string buffer(kAnswerBytes, '\0');
  while (true) {
    const ssize_t length = ::recv(netlink.get(), buffer.data(), buffer.size(), 0);
    if (length < 0) {
      return SyscallError(errno, "answer of sock_diag");
    }
    const std::string_view bytes =
        std::string_view(buffer).substr(0, static_cast<std::size_t>(length));
    ASSIGN_OR_RETURN(const bool done, AddAnswers(bytes, answers));
    if (done) return answers;
  }
}

std::optional<std::string_view> DiagAttribute(std::string_view answer, std::size_t fixed_bytes,
                                              int type) {
  answer.remove_prefix(std::min<std::size_t>(NLMSG_ALIGN(fixed_bytes), answer.size()));
  while (answer.size() >= sizeof(rtattr)) {
    const auto attribute = ReadAs<rtattr>(answer);
    if (attribute.rta_len < RTA_LENGTH(0) || attribute.rta_len > answer.size()) break;
    if (attribute.rta_type == type) {
      return answer.substr(RTA_LENGTH(0), attribute.rta_len - RTA_LENGTH(0));
    }
    answer.remove_prefix(std::min<std::size_t>(RTA_ALIGN(attribute.rta_len), answer.size()));
  }
  return std::nullopt;
}

Result<std::uint32_t> InetShutdown(const OpenFile& file, std::uint32_t protocol) {
  inet_diag_req_v2 request = {};
  request.sdiag_family = static_cast<std::uint8_t>(SocketFamily(file));
  request.sdiag_protocol = static_cast<std::uint8_t>(protocol);
  request.idiag_states = ~0u;
  ASSIGN_OR_RETURN(const std::vector<std::string> answers,
                   AskSocketDiag(file, std::as_bytes(std::span(&request, 1))));
  for (const std::string& answer : answers) {
    const auto message = ReadAs<inet_diag_msg>(answer);
    if (message.idiag_inode != static_cast<std::uint32_t>(file.st.st_ino)) continue;
    const auto shutdown = DiagAttribute(answer, sizeof(message), INET_DIAG_SHUTDOWN);
    if (shutdown && !shutdown->empty()) return static_cast<unsigned char>(shutdown->front());
  }
  return NotFound("not among those that sock_diag shows");
}

}  // namespace stasis::engine
