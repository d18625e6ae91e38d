#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/in.h>

#include "engine/files/socket.h"
#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

TEST(PacketSocketTest, KeepsInterfaceProtocolRingAndMembership) {
  const UniqueFd fd = Fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_PACKET, PACKET_VERSION, int{TPACKET_V2}), IsOk());
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_PACKET, PACKET_AUXDATA, 1), IsOk());
  const tpacket_req ring = {
      .tp_block_size = 4096, .tp_block_nr = 2, .tp_frame_size = 2048, .tp_frame_nr = 4};
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_PACKET, PACKET_RX_RING, ring), IsOk());
  packet_mreq everything = {};
  everything.mr_ifindex = 1;
  everything.mr_type = PACKET_MR_PROMISC;
  ASSERT_THAT(SetSocketOption(fd.get(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, everything), IsOk());
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_LOOP);
  address.sll_ifindex = 1;
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);

  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(trip.dump.entries[0].psk().rx_ring().frame_nr(), 4u);
  const int restored = trip.restored.get();
  sockaddr_ll bound = {};
  socklen_t length = sizeof(bound);
  ASSERT_EQ(::getsockname(restored, reinterpret_cast<sockaddr*>(&bound), &length), 0);
  EXPECT_EQ(bound.sll_protocol, address.sll_protocol);
  EXPECT_EQ(bound.sll_ifindex, 1);
  EXPECT_EQ(SocketOption(restored, SOL_PACKET, PACKET_VERSION).value(), int{TPACKET_V2});
  EXPECT_EQ(SocketOption(restored, SOL_PACKET, PACKET_AUXDATA).value(), 1);
  EXPECT_THAT(SetSocketOption(restored, SOL_PACKET, PACKET_DROP_MEMBERSHIP, everything), IsOk());
}

TEST(PacketSocketTest, AHugeRingIsRefused) {
  const UniqueFd fd = Fd(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  image::PacketRing& ring = *dump.entries[0].mutable_psk()->mutable_tx_ring();
  ring.set_block_size(1u << 31);
  ring.set_block_nr(1u << 31);
  for (const auto set : {&image::PacketRing::set_frame_size, &image::PacketRing::set_frame_nr,
                         &image::PacketRing::set_retire_tmo, &image::PacketRing::set_sizeof_priv,
                         &image::PacketRing::set_features}) {
    (ring.*set)(0);
  }
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(id), StatusIs(StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace stasis::engine
