#include "engine/files/unix_diag.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kAnswerBytes = 65536;  // thousands of connections that wait

struct Request {
  nlmsghdr header;
  unix_diag_req body;
};

Request RequestFor(const OpenFile& file) {
  Request request = {};
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.body.sdiag_family = AF_UNIX;
  request.body.udiag_states = ~0u;
  request.body.udiag_ino = static_cast<std::uint32_t>(file.st.st_ino);
  request.body.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN | UDIAG_SHOW_ICONS;
  // INET_DIAG_NOCOOKIE: the inode alone decides.
  request.body.udiag_cookie[0] = ~0u;
  request.body.udiag_cookie[1] = ~0u;
  return request;
}

template <typename T>
T ReadAs(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

void ReadAttribute(int type, const char* bytes, std::size_t length, UnixDiag& diag) {
  if (type == UNIX_DIAG_NAME) diag.name.assign(bytes, length);
  if (type == UNIX_DIAG_PEER && length >= 4) diag.peer = ReadAs<std::uint32_t>(bytes);
  if (type == UNIX_DIAG_SHUTDOWN && length >= 1) diag.shutdown = ReadAs<std::uint8_t>(bytes);
  if (type == UNIX_DIAG_RQLEN && length >= sizeof(unix_diag_rqlen)) {
    const auto queue = ReadAs<unix_diag_rqlen>(bytes);
    diag.receive_queue = queue.udiag_rqueue;
    diag.send_queue = queue.udiag_wqueue;
  }
  for (std::size_t at = 0; type == UNIX_DIAG_ICONS && at + 4 <= length; at += 4) {
    diag.waiting.push_back(ReadAs<std::uint32_t>(bytes + at));
  }
}

Result<UnixDiag> ParseAnswer(const char* bytes, std::size_t length) {
  if (length < sizeof(nlmsghdr)) return Internal("sock_diag: a short answer");
  const auto header = ReadAs<nlmsghdr>(bytes);
  if (header.nlmsg_type == NLMSG_ERROR && length >= NLMSG_HDRLEN + sizeof(int)) {
    // ENOENT: no such socket, or no unix_diag in this kernel.
    return SyscallError(-ReadAs<int>(bytes + NLMSG_HDRLEN), "sock_diag (CONFIG_UNIX_DIAG)");
  }
  std::size_t offset = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(unix_diag_msg));
  if (header.nlmsg_type != SOCK_DIAG_BY_FAMILY || length < offset) {
    return Internal("sock_diag: a strange answer");
  }
  const auto message = ReadAs<unix_diag_msg>(bytes + NLMSG_HDRLEN);
  UnixDiag diag;
  diag.type = message.udiag_type;
  diag.state = message.udiag_state;
  while (offset + sizeof(rtattr) <= length) {
    const auto attribute = ReadAs<rtattr>(bytes + offset);
    if (attribute.rta_len < RTA_LENGTH(0) || offset + attribute.rta_len > length) break;
    ReadAttribute(attribute.rta_type, bytes + offset + RTA_LENGTH(0),
                  attribute.rta_len - RTA_LENGTH(0), diag);
    offset += RTA_ALIGN(attribute.rta_len);
  }
  return diag;
}

}  // namespace

Result<UnixDiag> AskUnixDiag(const OpenFile& file) {
  ASSIGN_OR_RETURN(const UniqueFd netlink, NetlinkSocketBeside(file, NETLINK_SOCK_DIAG));
  const Request request = RequestFor(file);
  if (::send(netlink.get(), &request, sizeof(request), 0) != sizeof(request)) {
    return SyscallError(errno, "ask sock_diag");
  }
  std::vector<char> answer(kAnswerBytes);
  const ssize_t length = ::recv(netlink.get(), answer.data(), answer.size(), MSG_TRUNC);
  if (length < 0) {
    return SyscallError(errno, "answer of sock_diag");
  }
  if (length > static_cast<ssize_t>(answer.size())) {
    return Internal(NameOf(file) + ": a long answer of sock_diag");
  }
  Result<UnixDiag> diag = ParseAnswer(answer.data(), static_cast<std::size_t>(length));
  if (!diag.ok()) return Annotate(diag.status(), NameOf(file));
  return diag;
}

}  // namespace stasis::engine
