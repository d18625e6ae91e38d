#include "engine/files/unix_diag.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/read_as.h"
#include "engine/files/socket.h"
#include "engine/files/socket_diag.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kAnswerBytes = 65536;  // thousands of connections that wait
constexpr std::uint32_t kShown = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN;
constexpr std::size_t kMany = 64;  // sockets of the tree: from there on all are asked for at once

struct Request {
  nlmsghdr header;
  unix_diag_req body;
};

unix_diag_req BodyFor(std::uint32_t inode, std::uint32_t show) {
  unix_diag_req body = {};
  body.sdiag_family = AF_UNIX;
  body.udiag_states = ~0u;
  body.udiag_ino = inode;
  body.udiag_show = show;
  // INET_DIAG_NOCOOKIE: the inode alone decides.
  body.udiag_cookie[0] = ~0u;
  body.udiag_cookie[1] = ~0u;
  return body;
}

Request RequestFor(const OpenFile& file) {
  Request request = {};
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.body = BodyFor(static_cast<std::uint32_t>(file.st.st_ino), kShown | UDIAG_SHOW_ICONS);
  return request;
}

void ReadAttribute(int type, std::string_view bytes, UnixDiag& diag) {
  const std::size_t length = bytes.size();
  if (type == UNIX_DIAG_NAME) diag.name = bytes;
  if (type == UNIX_DIAG_PEER && length >= 4) diag.peer = ReadAs<std::uint32_t>(bytes);
  if (type == UNIX_DIAG_SHUTDOWN && length >= 1) diag.shutdown = ReadAs<std::uint8_t>(bytes);
  if (type == UNIX_DIAG_RQLEN && length >= sizeof(unix_diag_rqlen)) {
    const auto queue = ReadAs<unix_diag_rqlen>(bytes);
    diag.receive_queue = queue.udiag_rqueue;
    diag.send_queue = queue.udiag_wqueue;
  }
  for (std::size_t at = 0; type == UNIX_DIAG_ICONS && at + 4 <= length; at += 4) {
    diag.waiting.push_back(ReadAs<std::uint32_t>(bytes.substr(at)));
  }
}

Result<UnixDiag> ParseBody(std::string_view body) {
  std::size_t offset = NLMSG_ALIGN(sizeof(unix_diag_msg));
  if (body.size() < offset) return Internal("sock_diag: a strange answer");
  const auto message = ReadAs<unix_diag_msg>(body);
  UnixDiag diag;
  diag.type = message.udiag_type;
  diag.state = message.udiag_state;
  while (offset + sizeof(rtattr) <= body.size()) {
    const auto attribute = ReadAs<rtattr>(body.substr(offset));
    if (attribute.rta_len < RTA_LENGTH(0) || offset + attribute.rta_len > body.size()) break;
    ReadAttribute(attribute.rta_type,
                  body.substr(offset + RTA_LENGTH(0), attribute.rta_len - RTA_LENGTH(0)), diag);
    offset += RTA_ALIGN(attribute.rta_len);
  }
  return diag;
}

Result<UnixDiag> ParseAnswer(std::string_view bytes) {
  if (bytes.size() < sizeof(nlmsghdr)) return Internal("sock_diag: a short answer");
  const auto header = ReadAs<nlmsghdr>(bytes);
  if (header.nlmsg_type == NLMSG_ERROR && bytes.size() >= NLMSG_HDRLEN + sizeof(int)) {
    // ENOENT: no such socket, or no unix_diag in this kernel.
    return SyscallError(-ReadAs<int>(bytes.substr(NLMSG_HDRLEN)), "sock_diag (CONFIG_UNIX_DIAG)");
  }
  if (header.nlmsg_type != SOCK_DIAG_BY_FAMILY) return Internal("sock_diag: a strange answer");
  return ParseBody(bytes.substr(NLMSG_HDRLEN));
}

Result<UnixDiag> AskAlone(const OpenFile& file) {
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
  Result<UnixDiag> diag = ParseAnswer({answer.data(), static_cast<std::size_t>(length)});
  if (!diag.ok()) return Annotate(diag.status(), NameOf(file));
  return diag;
}

// Of a network namespace, by inode.
using Diags = std::unordered_map<std::uint32_t, UnixDiag>;

// The kernel looks through all its sockets for each that is asked for (unix_lookup_by_ino() in net/unix/diag.c).
// Without the clients of listeners, for which an answer may be too short.
Result<Diags> AskForAll(const OpenFile& file) {
  const unix_diag_req body = BodyFor(0, kShown);
  ASSIGN_OR_RETURN(const std::vector<std::string> answers,
                   AskSocketDiag(file, std::as_bytes(std::span(&body, 1))));
  Diags diags;
  for (const std::string& answer : answers) {
    ASSIGN_OR_RETURN(UnixDiag diag, ParseBody(answer));
    diags.insert_or_assign(ReadAs<unix_diag_msg>(answer).udiag_ino, std::move(diag));
  }
  return diags;
}

// The sockets of the tree, and what was asked of all in each of their network namespaces.
struct Sockets {
  std::size_t files = 0;  // how many were looked at
  std::unordered_map<std::uint32_t, const OpenFile*> by_inode;
  std::map<ino_t, Diags> diags;
};

Sockets& SocketsOf(FileDumpContext& context) {
  std::shared_ptr<void>& found = context.Found()["unix sockets"];
  if (found == nullptr) found = std::make_shared<Sockets>();
  Sockets& sockets = *static_cast<Sockets*>(found.get());
  const std::span<const OpenFile> files = context.files();
  if (sockets.files == files.size()) return sockets;
  sockets = {};
  sockets.files = files.size();
  for (const OpenFile& file : files) {
    if (S_ISSOCK(file.st.st_mode))
      sockets.by_inode.emplace(static_cast<std::uint32_t>(file.st.st_ino), &file);
  }
  return sockets;
}

}  // namespace

Result<UnixDiag> AskUnixDiag(const OpenFile& file, FileDumpContext& context) {
  Sockets& sockets = SocketsOf(context);
  if (sockets.by_inode.size() < kMany) return AskAlone(file);
  ASSIGN_OR_RETURN(const ino_t network, NetworkOf(file));
  auto known = sockets.diags.find(network);
  if (known == sockets.diags.end()) {
    ASSIGN_OR_RETURN(Diags diags, AskForAll(file));
    known = sockets.diags.emplace(network, std::move(diags)).first;
  }
  const auto diag = known->second.find(static_cast<std::uint32_t>(file.st.st_ino));
  if (diag == known->second.end()) return AskAlone(file);
  const bool has_clients = diag->second.state == TCP_LISTEN && diag->second.receive_queue > 0;
  return has_clients ? AskAlone(file) : diag->second;
}

const OpenFile* SocketOfTree(std::uint32_t inode, FileDumpContext& context) {
  const Sockets& sockets = SocketsOf(context);
  const auto found = sockets.by_inode.find(inode);
  return found == sockets.by_inode.end() ? nullptr : found->second;
}

}  // namespace stasis::engine
