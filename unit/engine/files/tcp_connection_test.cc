#include "engine/files/tcp_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>

#include "engine/files/inet_address.h"
#include "engine/files/socket.h"
#include "engine/files/tcp_hold.h"
#include "engine/files/tcp_segment.h"
#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::testing::Not;

InetAddress Loopback(int family) {
  InetAddress address;
  address.family = family;
  address.words[family == AF_INET ? 0 : 3] = htonl(family == AF_INET ? INADDR_LOOPBACK : 1);
  return address;
}

std::uint8_t State(int fd) {
  return SocketOption<tcp_info>(fd, IPPROTO_TCP, TCP_INFO).value_or(tcp_info()).tcpi_state;
}

void AwaitState(int fd, int state) {
  for (int i = 0; i < 1000 && State(fd) != state; ++i) ::poll(nullptr, 0, 1);
  EXPECT_EQ(State(fd), state);
}

struct Ends {
  explicit Ends(int family) {
    listener = Fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    LocalFileActor actor;
    EXPECT_THAT(actor.Bind(listener.get(), InetSockaddr(Loopback(family)).bytes()), IsOk());
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    client = Fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_THAT(actor.Connect(client.get(), InetSockaddr(*LocalAddress(listener.get())).bytes()),
                IsOk());
    server = Fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }
  UniqueFd listener, client, server;
};

// `fd` as a dump that ends its tree and a restore leave it; the peer is not asked.
struct Moved {
  explicit Moved(UniqueFd fd) : restore(dump) {
    dump.chosen.tcp_established = restore.chosen.tcp_established = true;
    const std::uint32_t id = dump.Add(fd.get());
    status = dump.DumpAll();
    if (!status.ok()) return;
    fd.Reset();
    dump.Forget();
    for (TcpHold& hold : dump.connections) hold.Abandon();
    Result<UniqueFd> result = restore.Restore(id);
    status = result.status();
    if (!result.ok()) return;
    restored = *std::move(result);
    status = ResumeConnections(restore.connections);
  }
  int fd() const { return restored.get(); }
  LocalDumpContext dump;
  LocalRestoreContext restore;
  Status status;
  UniqueFd restored;
};

void ExpectTalk(int a, int b) {
  EXPECT_EQ(::send(a, "ab", 2, MSG_NOSIGNAL), 2);
  char bytes[2];
  EXPECT_EQ(::recv(b, bytes, 2, MSG_WAITALL), 2);
}

class TcpConnectionTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Families, TcpConnectionTest, ::testing::Values(AF_INET, AF_INET6));

TEST_P(TcpConnectionTest, GoesOnWithWhatWasUnread) {
  Ends ends(GetParam());
  ASSERT_EQ(::write(ends.server.get(), "unread", 6), 6);
  ASSERT_EQ(::write(ends.client.get(), "sent", 4), 4);
  const Moved moved(std::move(ends.client));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(ReadSome(moved.fd()), "unread");
  EXPECT_EQ(ReadSome(ends.server.get()), "sent");
  ExpectTalk(moved.fd(), ends.server.get());
  ExpectTalk(ends.server.get(), moved.fd());
}

TEST_P(TcpConnectionTest, KeepsOptionsAndBufferSizing) {
  Ends ends(GetParam());
  ASSERT_THAT(SetSocketOption(ends.client.get(), SOL_SOCKET, SO_REUSEADDR, 1), IsOk());
  ASSERT_THAT(SetSocketOption(ends.client.get(), IPPROTO_TCP, TCP_CORK, 1), IsOk());
  const int size = SocketOption(ends.client.get(), SOL_SOCKET, SO_RCVBUF).value();
  constexpr int kBufLock = 72;
  const Moved moved(std::move(ends.client));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(SocketOption(moved.fd(), SOL_SOCKET, SO_REUSEADDR).value(), 1);
  EXPECT_EQ(SocketOption(moved.fd(), IPPROTO_TCP, TCP_CORK).value(), 1);
  EXPECT_EQ(SocketOption(moved.fd(), SOL_SOCKET, SO_RCVBUF).value(), size);
  EXPECT_EQ(SocketOption(moved.fd(), SOL_SOCKET, kBufLock).value(), 0);
  EXPECT_TRUE(SocketFilter(moved.fd()).value().empty());
}

TEST_P(TcpConnectionTest, KeepsHalfClosedStates) {
  Ends ends(GetParam());
  ASSERT_EQ(::shutdown(ends.client.get(), SHUT_WR), 0);
  AwaitState(ends.client.get(), TCP_FIN_WAIT2);
  const Moved client(std::move(ends.client));
  ASSERT_THAT(client.status, IsOk());
  EXPECT_EQ(State(client.fd()), TCP_FIN_WAIT2);
  const Moved server(std::move(ends.server));
  ASSERT_THAT(server.status, IsOk());
  EXPECT_EQ(State(server.fd()), TCP_CLOSE_WAIT);
  EXPECT_EQ(ReadSome(server.fd()), "");
  ExpectTalk(server.fd(), client.fd());
  ASSERT_EQ(::shutdown(server.fd(), SHUT_WR), 0);
  EXPECT_EQ(ReadSome(client.fd()), "");
}

TEST_P(TcpConnectionTest, ADumpLeavesItAsItWas) {
  Ends ends(GetParam());
  const int fd = ends.client.get();
  const std::array<sock_filter, 1> all = {
      {{.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0xffff}}};
  ASSERT_THAT(SetSocketFilter(fd, all), IsOk());
  ASSERT_THAT(SetSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, 1), IsOk());
  {
    LocalDumpContext dump;
    dump.chosen.tcp_established = true;
    dump.Add(fd);
    ASSERT_THAT(dump.DumpAll(), IsOk());
    EXPECT_EQ(dump.connections.size(), 1u);
    EXPECT_EQ(SocketOption(fd, IPPROTO_TCP, TCP_REPAIR).value(), 1);
    EXPECT_EQ(::write(ends.server.get(), "held", 4), 4);
  }
  EXPECT_EQ(SocketOption(fd, IPPROTO_TCP, TCP_REPAIR).value(), 0);
  EXPECT_EQ(SocketOption(fd, SOL_SOCKET, SO_REUSEADDR).value(), 1);
  EXPECT_EQ(SocketFilter(fd).value().size(), 1u);
  EXPECT_EQ(ReadSome(fd), "held") << "the peer sends again what was not taken";
  ExpectTalk(fd, ends.server.get());
}

TEST_P(TcpConnectionTest, AnEndedOneKeepsWhatWasUnread) {
  Ends ends(GetParam());
  ASSERT_EQ(::write(ends.server.get(), "last", 4), 4);
  ASSERT_EQ(::shutdown(ends.server.get(), SHUT_WR), 0);
  ASSERT_EQ(::shutdown(ends.client.get(), SHUT_WR), 0);
  AwaitState(ends.client.get(), TCP_CLOSE);
  const Moved moved(std::move(ends.client));
  ASSERT_THAT(moved.status, IsOk());
  EXPECT_EQ(State(moved.fd()), TCP_CLOSE);
  EXPECT_EQ(ReadSome(moved.fd()), "last");
  EXPECT_EQ(ReadSome(moved.fd()), "");
  EXPECT_EQ(::send(moved.fd(), "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
}

TEST_P(TcpConnectionTest, StrangeNumbersAreRefused) {
  Ends ends(GetParam());
  LocalDumpContext dump;
  dump.chosen.tcp_established = true;
  const std::uint32_t id = dump.Add(ends.client.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  const image::InetSkEntry socket = dump.entries[0].isk();
  const std::string name = ImageName("tcp-stream", socket.ino());
  TcpStream stream = *LoadTcpStream(dump.images, socket.ino());
  stream.entry.set_snd_wscale(15);
  dump.images.files.erase(name);
  dump.images.Add(name.substr(0, name.size() - 4), stream.entry.SerializeAsString(), "");
  LocalRestoreContext restore(dump);
  restore.chosen.tcp_established = true;
  EXPECT_THAT(restore.Restore(id), Not(IsOk()));
}

TEST(TcpSegmentTest, ItsChecksumSumsToNothing) {
  TcpSegment segment = {.from = Loopback(AF_INET), .to = Loopback(AF_INET)};
  segment.from.port = 7;
  segment.sequence = 0x12345678;
  segment.fin = true;
  const std::string bytes = ToBytes(segment);
  ASSERT_EQ(bytes.size(), 40u);
  std::uint32_t sum = 6 + 20;  // protocol and length, of the pseudo header
  for (std::size_t i = 12; i < bytes.size(); i += 2) {
    sum += static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i]) << 8 |
                                      static_cast<unsigned char>(bytes[i + 1]));
  }
  EXPECT_EQ((sum & 0xffff) + (sum >> 16), 0xffffu);
}

}  // namespace
}  // namespace stasis::engine
