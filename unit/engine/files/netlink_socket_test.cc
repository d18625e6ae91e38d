#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::SizeIs;

UniqueFd Socket(int protocol, std::uint32_t groups) {
  UniqueFd fd = Fd(::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, protocol));
  sockaddr_nl address = {};
  address.nl_family = AF_NETLINK;
  address.nl_groups = groups;
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

sockaddr_nl NameOf(int fd) {
  sockaddr_nl address = {};
  socklen_t length = sizeof(address);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  return address;
}

int Option(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof(value);
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &length), 0);
  return value;
}

TEST(NetlinkSocketTest, PortGroupsTypeAndOptionsComeBack) {
  UniqueFd fd = Socket(NETLINK_ROUTE, RTMGRP_LINK);
  const int on = 1;
  ASSERT_EQ(::setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on)), 0);
  const sockaddr_nl before = NameOf(fd.get());
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  dump.Forget();
  fd.Reset();  // its port is free

  LocalRestoreContext restore(dump);
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(NameOf(restored->get()).nl_pid, before.nl_pid);
  EXPECT_EQ(NameOf(restored->get()).nl_groups, std::uint32_t{RTMGRP_LINK});
  EXPECT_EQ(Option(restored->get(), SOL_SOCKET, SO_TYPE), SOCK_DGRAM);
  EXPECT_EQ(Option(restored->get(), SOL_NETLINK, NETLINK_EXT_ACK), 1);
  EXPECT_THAT(restore.notes, SizeIs(0));
}

TEST(NetlinkSocketTest, APortThatIsTakenBecomesANewOneAndANote) {
  const UniqueFd fd = Socket(NETLINK_ROUTE, 0);
  const RoundTrip trip(fd.get());  // the first one lives on
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_NE(NameOf(trip.restored.get()).nl_pid, NameOf(fd.get()).nl_pid);
  EXPECT_THAT(trip.restore.notes, ::testing::ElementsAre(HasSubstr("new port")));
}

TEST(NetlinkSocketTest, RefusesWhatWouldMeanSomethingElseElsewhere) {
  const UniqueFd generic = Socket(NETLINK_GENERIC, 1 << 15);  // nlctrl's "notify" is 16
  EXPECT_THAT(RoundTrip(generic.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("NETLINK_GENERIC")));
  const UniqueFd user = Socket(NETLINK_USERSOCK, 0);
  EXPECT_THAT(RoundTrip(user.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("protocol 2")));
  const UniqueFd far = Socket(NETLINK_ROUTE, 0);
  const int group = 33;
  ASSERT_EQ(::setsockopt(far.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)), 0);
  EXPECT_THAT(RoundTrip(far.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("above 32")));
}

}  // namespace
}  // namespace stasis::engine
