#include "engine/proc/net_sockets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;

constexpr char kTcp[] =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout "
    "inode\n"
    "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 71 "
    "1 "
    "0000000000000000 100 0 0 10 0\n"
    "   1: 0100007F:A001 0101000A:0050 02 00000001:00000000 01:00000064 00000000     0        0 72 "
    "2 "
    "0000000000000000 100 0 0 10 -1\n";
constexpr char kTcp6[] =
    "  sl  local_address                         remote_address                        st\n"
    "   0: 00000000000000000000000001000000:A001 0000000000000000FFFF00000100007F:01BB 02 "
    "00000001:00000000 01:00000064 00000000     0        0 9 1 0 100 0 0 10 0\n";

TEST(NetSocketsTest, FindsWhomASocketConnectsTo) {
  const Result<NetSocket> socket = FindNetSocket(kTcp, 72);
  ASSERT_THAT(socket, IsOk());
  EXPECT_THAT(socket->remote_words, ElementsAre(0x0101000au));
  EXPECT_EQ(socket->remote_port, 80);
}

TEST(NetSocketsTest, AnIpv6AddressHasFourWords) {
  const Result<NetSocket> socket = FindNetSocket(kTcp6, 9);
  ASSERT_THAT(socket, IsOk());
  EXPECT_THAT(socket->remote_words, ElementsAre(0u, 0u, 0xffff0000u, 0x0100007fu));
  EXPECT_EQ(socket->remote_port, 443);
}

TEST(NetSocketsTest, OthersAreNotFound) {
  EXPECT_THAT(FindNetSocket(kTcp, 1), StatusIs(StatusCode::kNotFound));
  EXPECT_THAT(FindNetSocket("", 1), StatusIs(StatusCode::kNotFound));
}

}  // namespace
}  // namespace stasis::engine
