// TCP segments of our own making.
#pragma once

#include <cstdint>

#include "engine/base/status.h"
#include "engine/files/inet_address.h"

namespace stasis::engine {

/// The address on the wire: that of IPv4 for what IPv6 shows as ::ffff:1.2.3.4.
InetAddress Unmapped(const InetAddress& address);

struct TcpSegment {
  InetAddress from, to;  ///< Of one family.
  std::uint32_t sequence = 0, acknowledged = 0;
  std::uint16_t window = 0;  ///< Scaled.
  bool fin = false, rst = false;
};

/// The bytes of the segment with its IP header, as a raw socket takes them.
std::string ToBytes(const TcpSegment& segment);

/// The mark (SO_MARK) of such a segment on its way, for filters that let pass nothing else.
inline constexpr std::uint32_t kSegmentMark = 0xC114;

/// Has the socket `fd` receive nothing but such segments: what its peer, or who is in its place, answers does not
/// reach it.
Status TakeOwnSegments(int fd);

/// Lets the kernel receive `segment`, whose receiver is in the network namespace of the socket `fd`.
/// Needs CAP_NET_RAW there.
Status ReceiveSegment(int fd, const TcpSegment& segment);

}  // namespace stasis::engine
