#include "kubelet-api/transport/connections.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace stasis::testing {
namespace {

using kubelet_api::PeerOf;

sockaddr_storage Six(const unsigned char (&bytes)[16]) {
  sockaddr_storage storage = {};
  auto& six = reinterpret_cast<sockaddr_in6&>(storage);
  six.sin6_family = AF_INET6;
  for (int at = 0; at < 16; ++at) six.sin6_addr.s6_addr[at] = bytes[at];
  return storage;
}

TEST(PeerOfTest, CountsTheNetworkOfAnIpv6Host) {
  const auto peer = PeerOf(Six({0x20, 1, 0xd, 0xb8, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(peer.address, "2001:db8:0:7:102:304:506:708");
  EXPECT_EQ(peer.network, "2001:db8:0:7::/64");
}

// All of IPv4 lies in one /64 of these.
TEST(PeerOfTest, TellsIpv4ClientsOfAnIpv6SocketApart) {
  const auto peer = PeerOf(Six({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3}));
  EXPECT_EQ(peer.address, "10.1.2.3");
  EXPECT_EQ(peer.network, "10.1.2.3");
}

}  // namespace
}  // namespace stasis::testing
