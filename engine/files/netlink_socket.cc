// netlink(7) sockets: a program's line to the kernel.
//
// State   protocol, own and peer's port, multicast groups, options. All by getsockname, getpeername
//         and getsockopt on the borrowed descriptor
// Restore the socket is made, bound and connected by the process under restore: a group that needs
//         CAP_NET_ADMIN needs it again
// Lost    messages that nobody has read. The own port, where another socket has it by now: the report
//         says so
// Not here protocols whose kernel side keeps something for a socket that it does not show (netfilter's queues and
//         tables, the connector's filters); that of the audit daemon, which the kernel sends to; a peer that is not in
//         the tree; listening in all namespaces; groups of NETLINK_GENERIC, whose numbers are drawn anew at each boot,
//         and those above 32: refused
// Rule    An audit daemon says its pid to the kernel, in the first pid namespace only (AUDIT_SET, audit_netlink_ok() in
//         kernel/audit.c)
// Source  netlink(7), net/netlink/af_netlink.c; tested on 6.18
#include <linux/audit.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "engine/base/namespace.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/socket.h"

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

namespace stasis::engine {
namespace {

// Options of one int, none of which needs a right.
constexpr auto kOptions =
    std::to_array<int>({NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS,
                        NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK});
constexpr std::uint32_t kNeverConnected = 7;  // TCP_CLOSE, as sock_init_data() leaves it
constexpr std::uint32_t kConnected = 1;       // NETLINK_CONNECTED

bool Owns(const OpenFile& file) { return SocketFamily(file) == AF_NETLINK; }

// Those of which the kernel keeps nothing but what the socket shows.
constexpr auto kProtocols = std::to_array<std::uint32_t>(
    {NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_GENERIC, NETLINK_KOBJECT_UEVENT, NETLINK_XFRM,
     NETLINK_SELINUX, NETLINK_AUDIT, NETLINK_FIB_LOOKUP, NETLINK_CRYPTO});

bool IsKnown(std::uint32_t protocol) {
  return std::ranges::find(kProtocols, protocol) != kProtocols.end();
}

// As this pid namespace numbers it; 0 for none.
Result<pid_t> AuditDaemon() {
  struct {
    nlmsghdr header;
    audit_status status;
  } answer = {};
  nlmsghdr question = {};
  question.nlmsg_len = sizeof(question);
  question.nlmsg_type = AUDIT_GET;
  question.nlmsg_flags = NLM_F_REQUEST;
  const UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT));
  if (!fd || ::send(fd.get(), &question, sizeof(question), 0) < 0) {
    return SyscallError(errno, "ask for the audit daemon");
  }
  // A thread of the kernel's answers (audit_send_reply()).
  constexpr int kPatienceMs = 1000;
  pollfd ready = {.fd = fd.get(), .events = POLLIN, .revents = 0};
  (void)::poll(&ready, 1, kPatienceMs);
  const ssize_t bytes = ::recv(fd.get(), &answer, sizeof(answer), MSG_DONTWAIT);
  constexpr std::size_t kUpToPid = offsetof(audit_status, pid) + sizeof(answer.status.pid);
  if (bytes < static_cast<ssize_t>(sizeof(nlmsghdr) + kUpToPid) ||
      answer.header.nlmsg_type != AUDIT_GET) {
    return FailedPrecondition("the kernel does not tell which process is the audit daemon");
  }
  return static_cast<pid_t>(answer.status.pid);
}

Status CheckNoAuditDaemon(const OpenFile& file, const FileDumpContext& context) {
  if (file.pid != file.ns_pid || !InFirstPidNamespace()) return OkStatus();
  const Result<pid_t> daemon = AuditDaemon();
  if (!daemon.ok()) return Annotate(daemon.status(), NameOf(file));
  if (*daemon == 0 || context.ToNamespacePid(*daemon) == 0) return OkStatus();
  return Unimplemented(NameOf(file) +
                       ": the tree has the audit daemon, which cannot be checkpointed");
}

Status CheckSupported(const OpenFile& file, std::uint32_t protocol) {
  if (!IsKnown(protocol)) {
    return Unimplemented(NameOf(file) + ": netlink sockets of protocol " +
                         std::to_string(protocol) + " cannot be checkpointed yet");
  }
  if (SocketOption(file.borrowed.get(), SOL_NETLINK, NETLINK_LISTEN_ALL_NSID).value_or(0) == 0) {
    return OkStatus();
  }
  return Unimplemented(NameOf(file) +
                       ": NETLINK_LISTEN_ALL_NSID needs CAP_NET_BROADCAST and cannot be "
                       "checkpointed yet");
}

using GetName = int (*)(int, sockaddr*, socklen_t*);

Result<sockaddr_nl> AddressBy(GetName get, int fd, const char* name) {
  sockaddr_nl address = {};
  socklen_t length = sizeof(address);
  if (get(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return SyscallError(errno, name);
  }
  return address;
}

// NETLINK_LIST_MEMBERSHIPS gives the length that it needs, in bytes; groups beyond the first word do not
// fit into an address.
Status CheckGroups(const OpenFile& file, std::uint32_t protocol) {
  std::array<std::uint32_t, 64> words = {};
  socklen_t length = sizeof(words);
  if (::getsockopt(file.borrowed.get(), SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words.data(),
                   &length) != 0) {
    return SyscallError(errno, "NETLINK_LIST_MEMBERSHIPS " + NameOf(file));
  }
  if (length > sizeof(words)) return Unimplemented(NameOf(file) + ": too many netlink groups");
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == 0 || (i == 0 && protocol != NETLINK_GENERIC)) continue;
    return Unimplemented(NameOf(file) + ": netlink groups " +
                         (i == 0 ? "of NETLINK_GENERIC" : "above 32") +
                         " cannot be checkpointed yet");
  }
  return OkStatus();
}

// Is the port one of the tree's own?
bool IsInTree(std::uint32_t port, std::uint32_t protocol, FileDumpContext& context) {
  return std::ranges::any_of(context.files(), [&](const OpenFile& other) {
    if (!Owns(other)) return false;
    const int fd = other.borrowed.get();
    const Result<sockaddr_nl> own = AddressBy(::getsockname, fd, "getsockname");
    return own.ok() && own->nl_pid == port &&
           SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_PROTOCOL).value_or(~0u) == protocol;
  });
}

Status DumpAddresses(const OpenFile& file, image::NetlinkSkEntry& entry, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const sockaddr_nl own, AddressBy(::getsockname, fd, "getsockname"));
  entry.set_portid(own.nl_pid);
  if (own.nl_groups != 0) entry.add_groups(own.nl_groups);
  ASSIGN_OR_RETURN(const sockaddr_nl peer, AddressBy(::getpeername, fd, "getpeername"));
  entry.set_dst_portid(peer.nl_pid);
  entry.set_dst_group(peer.nl_groups);
  if (peer.nl_pid != 0 && !IsInTree(peer.nl_pid, entry.protocol(), context)) {
    return Unimplemented("connected to another program by netlink");
  }
  const bool connected = peer.nl_pid != 0 || peer.nl_groups != 0;
  entry.set_state(connected ? kConnected : kNeverConnected);
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  image::FileEntry result = NewEntry(file, image::FD_NETLINKSK);
  image::NetlinkSkEntry& entry = *result.mutable_nlsk();
  RETURN_IF_ERROR(DumpCommon(file, context, entry));
  entry.set_ino(static_cast<std::uint32_t>(file.st.st_ino));
  ASSIGN_OR_RETURN(const auto protocol, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_PROTOCOL));
  RETURN_IF_ERROR(CheckSupported(file, protocol));
  if (protocol == NETLINK_AUDIT) RETURN_IF_ERROR(CheckNoAuditDaemon(file, context));
  entry.set_protocol(protocol);
  ASSIGN_OR_RETURN(const auto type, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_TYPE));
  entry.set_stasis_type(type);
  RETURN_IF_ERROR(CheckGroups(file, protocol));
  RETURN_IF_ERROR(Annotate(DumpAddresses(file, entry, context), NameOf(file)));
  ASSIGN_OR_RETURN(*entry.mutable_opts(), DumpSocketOptions(file));
  for (const int name : kOptions) {
    const Result<int> value = SocketOption(fd, SOL_NETLINK, name);
    if (!value.ok()) continue;  // a newer kernel's
    image::StasisSocketOption& option = *entry.add_stasis_options();
    option.set_level(SOL_NETLINK);
    option.set_name(name);
    option.set_value(*value);
  }
  ASSIGN_OR_RETURN(const short poll, PollNow(fd, POLLIN));
  if ((poll & POLLIN) != 0) {
    context.Note(NameOf(file) + ": netlink messages that nobody has read will be gone");
  }
  return result;
}

std::span<const std::byte> Bytes(const sockaddr_nl& address) {
  return std::as_bytes(std::span(&address, 1));
}

Status Bind(int fd, const image::NetlinkSkEntry& entry, FileRestoreContext& context) {
  sockaddr_nl own = {};
  own.nl_family = AF_NETLINK;
  own.nl_pid = entry.portid();
  own.nl_groups = entry.groups_size() > 0 ? entry.groups(0) : 0;
  if (own.nl_pid == 0 && own.nl_groups == 0) return OkStatus();
  Status status = context.actor().Bind(fd, Bytes(own));
  if (ErrnoOf(status) == EADDRINUSE) {
    context.Note("a netlink socket of port " + std::to_string(own.nl_pid) +
                 ", which another one has here, has a new port");
    own.nl_pid = 0;
    status = context.actor().Bind(fd, Bytes(own));
  }
  if (ErrnoOf(status) == EPERM) {
    return FailedPrecondition(
        "netlink groups that this container may not join; they need CAP_NET_ADMIN");
  }
  return Annotate(status, "bind a netlink socket");
}

Result<UniqueFd> Restore(const image::FileEntry& file, FileRestoreContext& context) {
  if (!file.has_nlsk()) return DataLoss("no netlink socket in the entry");
  const image::NetlinkSkEntry& entry = file.nlsk();
  RETURN_IF_ERROR(context.EnterNetwork(entry.ns_id()));
  if (entry.groups_size() > 1 || !IsKnown(entry.protocol())) {
    return Unimplemented("a netlink socket of protocol " + std::to_string(entry.protocol()) +
                         " or with groups above 32");
  }
  const int type = entry.stasis_type() == SOCK_DGRAM ? SOCK_DGRAM : SOCK_RAW;
  ASSIGN_OR_RETURN(UniqueFd fd,
                   context.actor().Socket(AF_NETLINK, type, static_cast<int>(entry.protocol())));
  RETURN_IF_ERROR(Bind(fd.get(), entry, context));
  if (entry.dst_group() != 0 || entry.dst_portid() != 0) {
    sockaddr_nl peer = {};
    peer.nl_family = AF_NETLINK;
    peer.nl_pid = entry.dst_portid();
    peer.nl_groups = entry.dst_group();
    RETURN_IF_ERROR(Annotate(context.actor().Connect(fd.get(), Bytes(peer)), "connect netlink"));
  }
  RETURN_IF_ERROR(RestorePrivilegedOptions(fd.get(), entry.opts(), context.actor()));
  RETURN_IF_ERROR(RestoreSocketOptions(fd.get(), entry.opts()));
  for (const image::StasisSocketOption& option : entry.stasis_options()) {
    const bool known = std::ranges::find(kOptions, option.name()) != kOptions.end();
    if (option.level() != SOL_NETLINK || !known || option.value() == 0) continue;
    RETURN_IF_ERROR(SetSocketOption(fd.get(), SOL_NETLINK, option.name(), option.value()));
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.flags()));
  return fd;
}

}  // namespace

const FileKind kNetlinkSocket = {.name = "netlink socket",
                                 .owns = Owns,
                                 .dump = Dump,
                                 .type = image::FD_NETLINKSK,
                                 .restore = Restore};

}  // namespace stasis::engine
