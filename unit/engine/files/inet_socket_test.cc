#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>

#include "engine/files/inet_address.h"
#include "engine/files/socket.h"
#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

InetAddress Loopback(int family, std::uint16_t port = 0) {
  InetAddress address;
  address.family = family;
  if (family == AF_INET) {
    address.words[0] = htonl(INADDR_LOOPBACK);
  } else {
    address.words[3] = htonl(1);
  }
  address.port = port;
  return address;
}

UniqueFd Bound(int family, int type) {
  UniqueFd fd = Fd(::socket(family, type | SOCK_CLOEXEC, 0));
  EXPECT_THAT(LocalFileActor().Bind(fd.get(), InetSockaddr(Loopback(family)).bytes()), IsOk());
  return fd;
}

// A dump of `fd` alone, whose original is closed: its port is free for the restored one.
struct Moved {
  explicit Moved(UniqueFd fd) : restore(dump) {
    const std::uint32_t id = dump.Add(fd.get());
    status = dump.DumpAll();
    if (!status.ok()) return;
    entry = dump.entries[0].isk();
    fd.Reset();
    dump.Forget();
    Result<UniqueFd> result = restore.Restore(id);
    status = result.status();
    if (result.ok()) restored = *std::move(result);
  }
  LocalDumpContext dump;
  LocalRestoreContext restore;
  image::InetSkEntry entry;
  Status status;
  UniqueFd restored;
};

class InetSocketTest : public ::testing::TestWithParam<int> {};

TEST_P(InetSocketTest, AnMptcpListenerStaysOne) {
  UniqueFd fd(::socket(GetParam(), SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_MPTCP));
  if (!fd) GTEST_SKIP() << "this kernel has no MPTCP: " << std::strerror(errno);
  ASSERT_THAT(LocalFileActor().Bind(fd.get(), InetSockaddr(Loopback(GetParam())).bytes()), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), IPPROTO_TCP, TCP_KEEPIDLE, 123), IsOk());
  ASSERT_EQ(::listen(fd.get(), 7), 0);
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(moved.entry.backlog(), 7u);
  EXPECT_EQ(SocketOption(moved.restored.get(), SOL_SOCKET, SO_PROTOCOL).value(), IPPROTO_MPTCP);
  EXPECT_EQ(SocketOption(moved.restored.get(), SOL_SOCKET, SO_ACCEPTCONN).value(), 1);
  EXPECT_EQ(SocketOption(moved.restored.get(), IPPROTO_TCP, TCP_KEEPIDLE).value(), 123);
}

TEST_P(InetSocketTest, AListenerListensAgainWithItsOptions) {
  UniqueFd fd = Bound(GetParam(), SOCK_STREAM);
  ASSERT_THAT(SetSocketOption(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, 3), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_SOCKET, SO_KEEPALIVE, 1), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_SOCKET, SO_RCVBUF, 20000), IsOk());
  ASSERT_EQ(::listen(fd.get(), 7), 0);
  const Result<InetAddress> address = LocalAddress(fd.get());
  const int defer = SocketOption(fd.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT).value_or(-1);
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(moved.entry.state(), std::uint32_t{TCP_LISTEN});
  EXPECT_EQ(moved.entry.backlog(), 7u);
  const int restored = moved.restored.get();
  EXPECT_EQ(LocalAddress(restored).value_or(InetAddress()).ToText(), address->ToText());
  EXPECT_EQ(SocketOption(restored, IPPROTO_TCP, TCP_NODELAY).value_or(0), 1);
  EXPECT_EQ(SocketOption(restored, IPPROTO_TCP, TCP_DEFER_ACCEPT).value_or(0), defer);
  EXPECT_EQ(SocketOption(restored, SOL_SOCKET, SO_KEEPALIVE).value_or(0), 1);
  EXPECT_EQ(SocketOption(restored, SOL_SOCKET, SO_REUSEADDR).value_or(1), 0);
  EXPECT_EQ(SocketOption(restored, SOL_SOCKET, SO_RCVBUF).value_or(0), 40000);
  const UniqueFd client = Fd(::socket(GetParam(), SOCK_STREAM, 0));
  EXPECT_THAT(LocalFileActor().Connect(client.get(), InetSockaddr(*address).bytes()), IsOk());
}

TEST_P(InetSocketTest, AConnectionIsResetAndNamed) {
  const UniqueFd listener = Bound(GetParam(), SOCK_STREAM);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  const Result<InetAddress> address = LocalAddress(listener.get());
  const UniqueFd client = Fd(::socket(GetParam(), SOCK_STREAM | SOCK_NONBLOCK, 0));
  (void)LocalFileActor().Connect(client.get(), InetSockaddr(*address).bytes());  // EINPROGRESS
  const UniqueFd server = Fd(::accept(listener.get(), nullptr, nullptr));
  const RoundTrip trip(client.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_THAT(trip.dump.notes, Contains(HasSubstr(address->ToText())));
  EXPECT_THAT(trip.restore.notes, Contains(HasSubstr(address->ToText())));
  const UniqueFd epoll = Fd(::epoll_create1(0));
  ASSERT_THAT(LocalProcessActor().EpollAdd(epoll.get(), trip.restored.get(), EPOLLIN, 0), IsOk());
  epoll_event event = {};
  ASSERT_EQ(::epoll_wait(epoll.get(), &event, 1, 0), 1);
  EXPECT_EQ(event.events & (EPOLLERR | EPOLLHUP), EPOLLERR | EPOLLHUP);
  char byte;
  EXPECT_EQ(::read(trip.restored.get(), &byte, 1), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_EQ(Describe(trip.restored.get(), 1).flags, Describe(client.get(), 1).flags);
  EXPECT_EQ(::write(client.get(), "x", 1), 1) << "the dump broke the original";
}

TEST_P(InetSocketTest, AnEndedConnectionKnowsItsPeer) {
  UniqueFd listener = Bound(GetParam(), SOCK_STREAM);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  const Result<InetAddress> address = LocalAddress(listener.get());
  UniqueFd client = Fd(::socket(GetParam(), SOCK_STREAM, 0));
  ASSERT_THAT(LocalFileActor().Connect(client.get(), InetSockaddr(*address).bytes()), IsOk());
  UniqueFd server = Fd(::accept(listener.get(), nullptr, nullptr));
  const Result<InetAddress> local = LocalAddress(client.get());
  ASSERT_EQ(::send(server.get(), "unread", 6, 0), 6);
  server.Reset();
  ASSERT_EQ(::shutdown(client.get(), SHUT_WR), 0);
  pollfd end = {.fd = client.get(), .events = 0, .revents = 0};
  ASSERT_EQ(::poll(&end, 1, 1000), 1);
  const Moved moved(std::move(client));
  ASSERT_THAT(moved.status, IsOk());
  const int fd = moved.restored.get();
  EXPECT_EQ(ReadSome(fd), "unread");
  EXPECT_EQ(ReadSome(fd), "") << "not the end";
  EXPECT_EQ(::send(fd, "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
  EXPECT_EQ(::poll(&(end = {.fd = fd, .events = 0, .revents = 0}), 1, 0), 1);
  EXPECT_EQ(end.revents, POLLHUP);
  const Result<InetAddress> peer = LastRemoteAddress(fd);
  if (!peer.ok()) GTEST_SKIP() << "no right to TCP_REPAIR";
  EXPECT_EQ(peer->ToText(), address->ToText());
  EXPECT_EQ(LocalAddress(fd)->ToText(), local->ToText());
}

TEST_P(InetSocketTest, ADatagramSocketReceivesAtTheSamePort) {
  UniqueFd fd = Bound(GetParam(), SOCK_DGRAM);
  const Result<InetAddress> address = LocalAddress(fd.get());
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  const UniqueFd sender = Fd(::socket(GetParam(), SOCK_DGRAM, 0));
  ASSERT_THAT(LocalFileActor().Connect(sender.get(), InetSockaddr(*address).bytes()), IsOk());
  ASSERT_EQ(::send(sender.get(), "hello", 5, 0), 5);
  EXPECT_EQ(ReadSome(moved.restored.get()), "hello");
  EXPECT_THAT(moved.restore.notes, IsEmpty());
}

TEST_P(InetSocketTest, AConnectedDatagramSocketSendsToTheSamePeer) {
  const UniqueFd peer = Bound(GetParam(), SOCK_DGRAM);
  const Result<InetAddress> address = LocalAddress(peer.get());
  UniqueFd fd = Fd(::socket(GetParam(), SOCK_DGRAM, 0));
  ASSERT_THAT(LocalFileActor().Connect(fd.get(), InetSockaddr(*address).bytes()), IsOk());
  const Result<InetAddress> local = LocalAddress(fd.get());
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(LocalAddress(moved.restored.get())->ToText(), local->ToText());
  ASSERT_EQ(::send(moved.restored.get(), "hello", 5, 0), 5);
  EXPECT_EQ(ReadSome(peer.get()), "hello");
}

TEST_P(InetSocketTest, ADatagramSocketOfCriusHasTcpOptionsThatMeanNothing) {
  UniqueFd fd = Bound(GetParam(), SOCK_DGRAM);
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  dump.Forget();
  fd.Reset();
  dump.entries[0].mutable_isk()->mutable_tcp_opts();
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(id), IsOk());
}

TEST_P(InetSocketTest, AFreshSocketIsFresh) {
  UniqueFd fd = Fd(::socket(GetParam(), SOCK_STREAM | SOCK_NONBLOCK, 0));
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(LocalAddress(moved.restored.get())->port, 0);
  EXPECT_EQ(::listen(moved.restored.get(), 1), 0);
}

INSTANTIATE_TEST_SUITE_P(Families, InetSocketTest, ::testing::Values(AF_INET, AF_INET6));

TEST(InetSocketRefusalTest, NamesAPortThatIsTaken) {
  const UniqueFd fd = Bound(AF_INET, SOCK_STREAM);
  ASSERT_EQ(::listen(fd.get(), 1), 0);
  EXPECT_THAT(RoundTrip(fd.get()).status,
              StatusIs(StatusCode::kAlreadyExists, HasSubstr("127.0.0.1:")));
}

TEST(InetSocketRefusalTest, NamesAnAddressThatIsNotThere) {
  LocalDumpContext dump;
  UniqueFd fd = Bound(AF_INET, SOCK_STREAM);
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  dump.entries[0].mutable_isk()->set_src_addr(0, inet_addr("192.0.2.1"));
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(id),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("192.0.2.1")));
}

TEST(InetSocketTest, ARawSocketKeepsItsFilterAndPeer) {
  UniqueFd fd = Fd(::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
  constexpr int kSolRaw = 255, kIcmpFilter = 1;
  ASSERT_THAT(SetSocketOption(fd.get(), kSolRaw, kIcmpFilter, 0x14), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), IPPROTO_IP, IP_HDRINCL, 1), IsOk());
  ASSERT_THAT(LocalFileActor().Connect(fd.get(), InetSockaddr(Loopback(AF_INET)).bytes()), IsOk());
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(moved.entry.dst_addr(0), htonl(INADDR_LOOPBACK)) << "a peer without a port";
  const int restored = moved.restored.get();
  EXPECT_EQ(SocketOption(restored, kSolRaw, kIcmpFilter).value(), 0x14);
  EXPECT_EQ(SocketOption(restored, IPPROTO_IP, IP_HDRINCL).value(), 1);
}

TEST(InetSocketTest, AMarkIsSetByTheProgramItself) {
  UniqueFd fd = Fd(::socket(AF_INET, SOCK_DGRAM, 0));
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_SOCKET, SO_MARK, 0xC114), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), IPPROTO_IP, IP_TOS, 0x10), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_SOCKET, SO_PRIORITY, 77), IsOk());
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(SocketOption(moved.restored.get(), SOL_SOCKET, SO_MARK).value(), 0xC114);
  EXPECT_EQ(SocketOption(moved.restored.get(), SOL_SOCKET, SO_PRIORITY).value(), 77);
}

TEST(InetSocketTest, IsAMemberOfItsMulticastGroups) {
  UniqueFd fd = Bound(AF_INET, SOCK_DGRAM);
  ip_mreqn group = {};
  group.imr_multiaddr.s_addr = inet_addr("239.1.2.3");
  group.imr_ifindex = 1;
  ASSERT_THAT(SetSocketOption(fd.get(), IPPROTO_IP, IP_ADD_MEMBERSHIP, group), IsOk());
  ip_mreq_source source = {};
  source.imr_multiaddr.s_addr = inet_addr("239.1.2.4");
  source.imr_interface.s_addr = htonl(INADDR_LOOPBACK);
  source.imr_sourceaddr.s_addr = inet_addr("127.0.0.9");
  ASSERT_THAT(SetSocketOption(fd.get(), IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, source), IsOk());
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(moved.entry.stasis_memberships_size(), 2);
  const int restored = moved.restored.get();
  EXPECT_THAT(SetSocketOption(restored, IPPROTO_IP, IP_DROP_MEMBERSHIP, group), IsOk());
  EXPECT_THAT(SetSocketOption(restored, IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, source), IsOk());
}

TEST(InetSocketTest, WritingStaysShut) {
  const UniqueFd peer = Bound(AF_INET, SOCK_DGRAM);
  UniqueFd fd = Bound(AF_INET, SOCK_DGRAM);
  ASSERT_THAT(LocalFileActor().Connect(fd.get(), InetSockaddr(*LocalAddress(peer.get())).bytes()),
              IsOk());
  ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  const Moved moved(std::move(fd));
  ASSERT_THAT(moved.status, IsOk());
  if (!moved.entry.has_shutdown()) GTEST_SKIP() << "no udp_diag in this kernel";
  EXPECT_EQ(::send(moved.restored.get(), "x", 1, MSG_NOSIGNAL), -1);
}

}  // namespace
}  // namespace stasis::engine
