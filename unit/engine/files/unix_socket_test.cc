#include <poll.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <thread>

#include "engine/files/socket.h"
#include "unit/engine/files/local_context.h"
#include "unit/engine/files/scratch_directory.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::Contains;
using ::testing::HasSubstr;

std::vector<std::byte> Address(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, name.data(), name.size());
  const auto* const bytes = reinterpret_cast<const std::byte*>(&address);
  return {bytes, bytes + offsetof(sockaddr_un, sun_path) + name.size()};
}

UniqueFd Bound(int type, const std::string& name) {
  UniqueFd fd = Fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  EXPECT_THAT(LocalFileActor().Bind(fd.get(), Address(name)), IsOk());
  return fd;
}

UniqueFd Connected(int type, const std::string& name) {
  UniqueFd fd = Fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  EXPECT_THAT(LocalFileActor().Connect(fd.get(), Address(name)), IsOk());
  return fd;
}

struct Pair {
  explicit Pair(int type) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
    one = UniqueFd(ends[0]);
    two = UniqueFd(ends[1]);
  }
  UniqueFd one, two;
};

// Both ends of `pair`, dumped and restored.
struct PairTrip {
  explicit PairTrip(const Pair& pair) : restore(dump) {
    const std::uint32_t one_id = dump.Add(pair.one.get());
    const std::uint32_t two_id = dump.Add(pair.two.get());
    status = dump.DumpAll();
    if (!status.ok()) return;
    Result<UniqueFd> second = restore.Restore(two_id);
    Result<UniqueFd> first = restore.Restore(one_id);
    status = first.ok() ? second.status() : first.status();
    if (!status.ok()) return;
    one = *std::move(first);
    two = *std::move(second);
    restore.Finish();
  }
  LocalDumpContext dump;
  LocalRestoreContext restore;
  Status status;
  UniqueFd one, two;
};

class UnixPairTest : public ::testing::TestWithParam<int> {};

TEST_P(UnixPairTest, KeepsMessagesOfBothDirectionsAndStaysConnected) {
  const Pair pair(GetParam());
  ASSERT_EQ(::send(pair.one.get(), "first", 5, 0), 5);
  ASSERT_EQ(::send(pair.one.get(), "second", 6, 0), 6);
  ASSERT_EQ(::send(pair.two.get(), "back", 4, 0), 4);
  const PairTrip trip(pair);
  ASSERT_THAT(trip.status, IsOk());
  ASSERT_EQ(::send(trip.one.get(), "third", 5, 0), 5);
  const bool stream = GetParam() == SOCK_STREAM;
  EXPECT_EQ(ReadSome(trip.two.get()), stream ? "firstsecondthird" : "first");
  if (!stream) {
    EXPECT_EQ(ReadSome(trip.two.get()), "second");
    EXPECT_EQ(ReadSome(trip.two.get()), "third");
  }
  EXPECT_EQ(ReadSome(trip.one.get()), "back");
  EXPECT_EQ(ReadSome(pair.one.get()), "back") << "the dump took it";
  EXPECT_EQ(SocketOption(pair.one.get(), SOL_SOCKET, SO_PEEK_OFF).value_or(0), -1);
}

void SendWith(int via, std::string text, int fd) {
  iovec part = {.iov_base = text.data(), .iov_len = text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(rights), &fd, sizeof(int));
  ASSERT_EQ(::sendmsg(via, &message, 0), static_cast<ssize_t>(text.size()));
}

// The descriptor that comes with the next bytes; none when they come without.
UniqueFd ReceiveWith(int fd, std::string& text) {
  text.resize(64);
  iovec part = {.iov_base = text.data(), .iov_len = text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = ::recvmsg(fd, &message, MSG_DONTWAIT);
  text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  const cmsghdr* const rights = CMSG_FIRSTHDR(&message);
  int received = -1;
  if (rights != nullptr) std::memcpy(&received, CMSG_DATA(rights), sizeof(int));
  return UniqueFd(received);
}

TEST_P(UnixPairTest, AFileInAMessageThatNobodyElseHoldsIsKept) {
  const Pair pair(GetParam());
  {
    const Pair sent(SOCK_STREAM);
    ASSERT_EQ(::send(sent.one.get(), "inside", 6, 0), 6);
    SendWith(pair.one.get(), "x", sent.two.get());
  }
  const int next = Fd(::dup(0)).get();
  {
    const PairTrip trip(pair);
    ASSERT_THAT(trip.status, IsOk());
    std::string text;
    EXPECT_EQ(ReadSome(ReceiveWith(trip.two.get(), text).get()), "inside");
    EXPECT_EQ(text, "x");
  }
  EXPECT_EQ(Fd(::dup(0)).get(), next) << "a received descriptor was left open";
}

TEST_P(UnixPairTest, ASocketMayWaitInItself) {
  const Pair pair(GetParam());
  SendWith(pair.one.get(), "x", pair.two.get());
  const PairTrip trip(pair);
  ASSERT_THAT(trip.status, IsOk());
  std::string text;
  const UniqueFd again = ReceiveWith(trip.two.get(), text);
  ASSERT_EQ(::send(trip.one.get(), "on", 2, 0), 2);
  EXPECT_EQ(ReadSome(again.get()), "on");
}

TEST(UnixSocketTest, BytesBeforeADescriptorComeWithoutIt) {
  const Pair pair(SOCK_STREAM);
  ASSERT_EQ(::send(pair.one.get(), "before", 6, 0), 6);
  SendWith(pair.one.get(), "with", pair.one.get());
  ASSERT_EQ(::send(pair.one.get(), "after", 5, 0), 5);
  const PairTrip trip(pair);
  ASSERT_THAT(trip.status, IsOk());
  char bytes[6];
  ASSERT_EQ(::recv(trip.two.get(), bytes, sizeof(bytes), 0), 6);
  std::string text;
  EXPECT_TRUE(ReceiveWith(trip.two.get(), text));
  EXPECT_EQ(text, "with");
  EXPECT_FALSE(ReceiveWith(trip.two.get(), text));
  EXPECT_EQ(text, "after");
}

INSTANTIATE_TEST_SUITE_P(Types, UnixPairTest,
                         ::testing::Values(SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM));

TEST(UnixSocketTest, EmptyDatagramsAreMessagesToo) {
  const Pair pair(SOCK_DGRAM);
  ASSERT_EQ(::send(pair.one.get(), "", 0, 0), 0);
  ASSERT_EQ(::send(pair.one.get(), "after", 5, 0), 5);
  const PairTrip trip(pair);
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(ReadSome(trip.two.get()), "");
  EXPECT_EQ(ReadSome(trip.two.get()), "after");
}

TEST(UnixSocketTest, AHalfShutPairStaysHalfShut) {
  const Pair pair(SOCK_STREAM);
  ASSERT_EQ(::send(pair.one.get(), "end", 3, 0), 3);
  ASSERT_EQ(::shutdown(pair.one.get(), SHUT_WR), 0);
  const PairTrip trip(pair);
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(ReadSome(trip.two.get()), "end");
  EXPECT_EQ(ReadSome(trip.two.get()), "");
  EXPECT_EQ(::send(trip.one.get(), "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
  EXPECT_EQ(::send(trip.two.get(), "x", 1, 0), 1);
}

TEST(UnixSocketTest, WhatAClosedPeerHadSentIsReadBeforeTheEnd) {
  Pair pair(SOCK_STREAM);
  ASSERT_EQ(::send(pair.two.get(), "farewell", 8, 0), 8);
  pair.two.Reset();
  const RoundTrip trip(pair.one.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(ReadSome(trip.restored.get()), "farewell");
  EXPECT_EQ(ReadSome(trip.restored.get()), "");
}

TEST(UnixSocketTest, RefusesAPeerOutsideTheTreeByItsName) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  const UniqueFd listener = Bound(SOCK_STREAM, path);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  const UniqueFd client = Connected(SOCK_STREAM, path);
  EXPECT_THAT(RoundTrip(client.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("not accepted")));
  EXPECT_THAT(RoundTrip(listener.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("1 connections")));
  const UniqueFd server = Fd(::accept(listener.get(), nullptr, nullptr));
  EXPECT_THAT(RoundTrip(client.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr(path)));
}

TEST(UnixSocketTest, APeerOutsideTheTreeIsSeveredWhenTheCallerChoseSo) {
  const Pair pair(SOCK_STREAM);
  ASSERT_EQ(::send(pair.two.get(), "last", 4, 0), 4);
  LocalDumpContext dump;
  dump.chosen.ext_unix_sk = true;
  const std::uint32_t id = dump.Add(pair.one.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  EXPECT_THAT(dump.notes, Contains(HasSubstr("will be closed")));
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  restore.Finish();
  EXPECT_EQ(ReadSome(restored->get()), "last");
  EXPECT_EQ(::recv(restored->get(), nullptr, 0, MSG_DONTWAIT), 0);
  EXPECT_EQ(::send(restored->get(), "x", 1, MSG_NOSIGNAL), -1);
}

TEST(UnixSocketTest, ConnectionsThatWaitComeBackInOrder) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  const UniqueFd listener = Bound(SOCK_STREAM, path);
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  const UniqueFd first = Connected(SOCK_STREAM, path), second = Connected(SOCK_STREAM, path);
  LocalDumpContext dump;
  const std::uint32_t second_id = dump.Add(second.get());
  const std::uint32_t first_id = dump.Add(first.get());
  const std::uint32_t listener_id = dump.Add(listener.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> server = restore.Restore(listener_id);
  ASSERT_THAT(server, IsOk());
  for (const std::uint32_t id : {first_id, second_id}) {
    const Result<UniqueFd> client = restore.Restore(id);
    ASSERT_THAT(client, IsOk());
    const UniqueFd accepted = Fd(::accept4(server->get(), nullptr, nullptr, SOCK_NONBLOCK));
    ASSERT_EQ(::send(client->get(), "x", 1, 0), 1);
    EXPECT_EQ(ReadSome(accepted.get()), "x");
  }
}

TEST(UnixSocketTest, WithDataAConnectionThatWaitsIsRefusedOrLeftOut) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  const UniqueFd listener = Bound(SOCK_STREAM, path);
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  const UniqueFd client = Connected(SOCK_STREAM, path);
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  for (const bool skip : {false, true}) {
    LocalDumpContext dump;
    dump.chosen.skip_in_flight = skip;
    const std::uint32_t client_id = dump.Add(client.get());
    dump.Add(listener.get());
    const Status status = dump.DumpAll();
    if (!skip) {
      EXPECT_THAT(status, StatusIs(StatusCode::kUnimplemented, HasSubstr("data")));
      continue;
    }
    ASSERT_THAT(status, IsOk());
    LocalRestoreContext restore(dump);
    const Result<UniqueFd> restored = restore.Restore(client_id);
    ASSERT_THAT(restored, IsOk());
    restore.Finish();
    EXPECT_EQ(::recv(restored->get(), nullptr, 0, MSG_DONTWAIT), 0);
  }
}

TEST(UnixSocketTest, AListenerOnAPathAcceptsAgain) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  const UniqueFd listener = Bound(SOCK_STREAM, path + std::string(1, '\0'));
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0622), 0);
  const RoundTrip trip(listener.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(trip.dump.entries[0].usk().backlog(), 5u);
  const UniqueFd client = Connected(SOCK_STREAM, path);
  const UniqueFd server = Fd(::accept4(trip.restored.get(), nullptr, nullptr, SOCK_NONBLOCK));
  struct stat st = {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777u, 0622u);
}

TEST(UnixSocketTest, AListenerWhosePathIsGoneHasItsNameOnly) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  const UniqueFd listener = Bound(SOCK_STREAM, path);
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const RoundTrip trip(listener.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_TRUE(trip.dump.entries[0].usk().deleted());
  EXPECT_EQ(::access(path.c_str(), F_OK), -1);
  EXPECT_EQ(SocketOption(trip.restored.get(), SOL_SOCKET, SO_ACCEPTCONN).value(), 1);
}

TEST(UnixSocketTest, ADeletedPathMayBeAnothersByNow) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  const UniqueFd server = Bound(SOCK_DGRAM, path);
  const UniqueFd client = Connected(SOCK_DGRAM, path);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const UniqueFd file = Fd(::open(path.c_str(), O_RDWR | O_CREAT, 0600));
  LocalDumpContext dump;
  const std::uint32_t server_id = dump.Add(server.get());
  const std::uint32_t client_id = dump.Add(client.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> new_server = restore.Restore(server_id);
  ASSERT_THAT(new_server, IsOk());
  const Result<UniqueFd> new_client = restore.Restore(client_id);
  ASSERT_THAT(new_client, IsOk());
  ASSERT_EQ(::send(new_client->get(), "new", 3, 0), 3);
  EXPECT_EQ(ReadSome(new_server->get()), "new");
  struct stat st = {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_TRUE(S_ISREG(st.st_mode));
}

TEST(UnixSocketTest, ADatagramSocketWhosePeerHasClosedStaysSo) {
  Pair pair(SOCK_DGRAM);
  ASSERT_EQ(::send(pair.two.get(), "farewell", 8, 0), 8);
  pair.two.Reset();
  const RoundTrip trip(pair.one.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(ReadSome(trip.restored.get()), "farewell");
  EXPECT_EQ(::send(trip.restored.get(), "x", 1, 0), -1);
  EXPECT_EQ(errno, ECONNREFUSED);
}

TEST(UnixSocketTest, ARenamedSocketIsFoundByItsFile) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  UniqueFd listener = Bound(SOCK_STREAM, scratch / "socket.tmp");
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  ASSERT_EQ(::rename((scratch / "socket.tmp").c_str(), path.c_str()), 0);
  const RoundTrip trip(listener.get());
  ASSERT_THAT(trip.status, IsOk());
  listener.Reset();
  const UniqueFd client = Connected(SOCK_STREAM, path);
  EXPECT_GE(Fd(::accept4(trip.restored.get(), nullptr, nullptr, SOCK_NONBLOCK)).get(), 0);
}

TEST(UnixSocketTest, DatagramsGoToANamedPeerOutsideTheTreeAgain) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "log";
  UniqueFd server = Bound(SOCK_DGRAM, path);
  const UniqueFd client = Connected(SOCK_DGRAM, path);
  RoundTrip trip(client.get());
  ASSERT_THAT(trip.status, IsOk());
  ASSERT_EQ(::send(trip.restored.get(), "new", 3, 0), 3);
  EXPECT_EQ(ReadSome(server.get()), "new");
  server.Reset();
  ASSERT_EQ(::unlink(path.c_str()), 0);
  EXPECT_THAT(trip.restore.Restore(1), IsOk());
  EXPECT_THAT(trip.restore.notes, Contains(HasSubstr(path)));
}

TEST(UnixSocketTest, DoesNotRemoveAFileThatTookItsPath) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "socket";
  UniqueFd listener = Bound(SOCK_STREAM, path);
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(listener.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const UniqueFd file = Fd(::open(path.c_str(), O_RDWR | O_CREAT, 0600));
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(id), StatusIs(StatusCode::kFailedPrecondition, HasSubstr(path)));
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);
}

TEST(UnixSocketTest, AnAbstractNameIsKeptToTheByte) {
  const std::string name = std::string(1, '\0') + "stasis-test-" + std::to_string(::getpid());
  UniqueFd listener = Bound(SOCK_SEQPACKET, name);
  ASSERT_EQ(::listen(listener.get(), 5), 0);
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(listener.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  listener.Reset();
  dump.Forget();
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  const UniqueFd client = Connected(SOCK_SEQPACKET, name);
}

TEST(UnixSocketTest, DatagramsToABoundSocketOfTheTreeStillArrive) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "log";
  const UniqueFd server = Bound(SOCK_DGRAM, path);
  const UniqueFd client = Connected(SOCK_DGRAM, path);
  ASSERT_EQ(::send(client.get(), "queued", 6, 0), 6);
  LocalDumpContext dump;
  const std::uint32_t client_id = dump.Add(client.get());
  const std::uint32_t server_id = dump.Add(server.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> new_client = restore.Restore(client_id);
  ASSERT_THAT(new_client, IsOk());
  const Result<UniqueFd> new_server = restore.Restore(server_id);
  ASSERT_THAT(new_server, IsOk());
  ASSERT_EQ(::send(new_client->get(), "new", 3, 0), 3);
  EXPECT_EQ(ReadSome(new_server->get()), "queued");
  EXPECT_EQ(ReadSome(new_server->get()), "new");
}

TEST(UnixSocketTest, AChainOfSocketsInAnArchiveIsNoRecursion) {
  const std::string prefix = std::string(1, '\0') + "stasis-chain-" + std::to_string(::getpid());
  LocalDumpContext dump;
  const UniqueFd model = Bound(SOCK_DGRAM, prefix);
  dump.Add(model.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  const image::FileEntry entry = dump.entries[0];
  dump.entries.clear();
  constexpr std::uint32_t kLength = 200;
  for (std::uint32_t i = 1; i <= kLength; ++i) {
    image::FileEntry& link = dump.entries.emplace_back(entry);
    link.set_id(i);
    link.mutable_usk()->set_ino(i);
    link.mutable_usk()->set_peer(i < kLength ? i + 1 : 0);
    link.mutable_usk()->set_name(prefix + "-" + std::to_string(i));
  }
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(1), IsOk());
  EXPECT_EQ(restore.Kept().count("unix-200"), 1u);
}

// Runs `body` in a thread that has a network namespace of its own, with that thread's id.
template <typename Body>
void InOtherNetwork(Body body) {
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) GTEST_SKIP() << "unshare: " << std::strerror(errno);
    body(::gettid());
  }).join();
}

TEST(UnixSocketTest, IsAskedAboutInItsOwnNetworkNamespace) {
  InOtherNetwork([](pid_t thread) {
    const Pair pair(SOCK_STREAM);
    OpenFile one = Describe(pair.one.get(), 1);
    one.pid = thread;
    Result<image::FileEntry> entry = Internal("not dumped");
    std::thread([&] {  // the dumper, who is elsewhere
      const UniqueFd home = Fd(::open("/proc/self/ns/net", O_RDONLY));
      ASSERT_EQ(::setns(home.get(), CLONE_NEWNET), 0);
      LocalDumpContext dump;
      dump.Add(pair.two.get());
      entry = DumpFile(one, dump);
    })
        .join();
    ASSERT_THAT(entry, IsOk());
    EXPECT_EQ(entry->usk().peer(), Describe(pair.two.get(), 2).st.st_ino);
  });
}

}  // namespace
}  // namespace stasis::engine
