// packet(7) sockets: frames of a network interface.
//
// State    by sock_diag: type, protocol, interface, version, memberships, rings, fanout; by getsockopt the
//          rest
// Restore  socket, bind and what takes a right are done by the process under restore (CAP_NET_RAW). The
//          interface is known by its number, as in CRIU's images
// Lost     frames that nobody has read, also those in rings; where the kernel was in a ring, which it does not
//          tell: a program that reads a mapped one sees new frames when they have come round to its place
// Not here fanout by a BPF program: refused. Mapped rings are among the areas of memory
// Source   packet(7), net/packet/af_packet.c, net/packet/diag.c; tested on 6.18
// Rule     A version, reserve and loss are set before a ring, fanout after bind(2). A socket of protocol 0
//          receives nothing until it is bound.
#include <linux/if_packet.h>
#include <linux/packet_diag.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "engine/base/read_as.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/socket.h"
#include "engine/files/socket_diag.h"

#ifndef SOL_PACKET
#define SOL_PACKET 263
#endif

namespace stasis::engine {
namespace {

// Options of one int that CRIU has no place for.
constexpr auto kOptions =
    std::to_array<int>({PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING, PACKET_TX_HAS_OFF});
constexpr std::uint32_t kNoFanout = 0xffffffff;
constexpr std::uint64_t kRingLimitBytes = std::uint64_t{1} << 30;
constexpr std::size_t kMembershipLimit = 4096;

bool Owns(const OpenFile& file) { return SocketFamily(file) == AF_PACKET; }

// ---- dump ----

Result<std::string> AskPacketDiag(const OpenFile& file) {
  packet_diag_req request = {};
  request.sdiag_family = AF_PACKET;
  request.pdiag_show =
      PACKET_SHOW_INFO | PACKET_SHOW_MCLIST | PACKET_SHOW_RING_CFG | PACKET_SHOW_FANOUT;
  ASSIGN_OR_RETURN(const std::vector<std::string> answers,
                   AskSocketDiag(file, std::as_bytes(std::span(&request, 1))));
  for (const std::string& answer : answers) {
    const auto message = ReadAs<packet_diag_msg>(answer);
    if (message.pdiag_ino == static_cast<std::uint32_t>(file.st.st_ino)) return answer;
  }
  return NotFound("not among the packet sockets that sock_diag shows");
}

std::optional<std::string_view> Attribute(std::string_view answer, int type) {
  return DiagAttribute(answer, sizeof(packet_diag_msg), type);
}

void DumpRing(std::string_view bytes, image::PacketRing& ring) {
  const auto shown = ReadAs<packet_diag_ring>(bytes);
  ring.set_block_size(shown.pdr_block_size);
  ring.set_block_nr(shown.pdr_block_nr);
  ring.set_frame_size(shown.pdr_frame_size);
  ring.set_frame_nr(shown.pdr_frame_nr);
  ring.set_retire_tmo(shown.pdr_retire_tmo);
  ring.set_sizeof_priv(shown.pdr_sizeof_priv);
  ring.set_features(shown.pdr_features);
}

void DumpMemberships(std::string_view bytes, image::PacketSockEntry& entry) {
  for (; bytes.size() >= sizeof(packet_diag_mclist);
       bytes.remove_prefix(sizeof(packet_diag_mclist))) {
    const auto shown = ReadAs<packet_diag_mclist>(bytes);
    for (std::uint32_t i = 0; i < shown.pdmc_count; ++i) {
      image::PacketMclist& membership = *entry.add_mclist();
      membership.set_index(shown.pdmc_index);
      membership.set_type(shown.pdmc_type);
      membership.set_addr(shown.pdmc_addr,
                          std::min<std::size_t>(shown.pdmc_alen, sizeof(shown.pdmc_addr)));
    }
  }
}

Status DumpInfo(std::string_view answer, image::PacketSockEntry& entry) {
  const auto bytes = Attribute(answer, PACKET_DIAG_INFO);
  if (!bytes) return Internal("packet_diag: a strange answer");
  const auto info = ReadAs<packet_diag_info>(*bytes);
  entry.set_ifindex(info.pdi_index);
  entry.set_version(info.pdi_version);
  entry.set_reserve(info.pdi_reserve);
  entry.set_copy_thresh(info.pdi_copy_thresh);
  entry.set_timestamp(info.pdi_tstamp);
  entry.set_aux_data((info.pdi_flags & PDI_AUXDATA) != 0);
  entry.set_orig_dev((info.pdi_flags & PDI_ORIGDEV) != 0);
  entry.set_vnet_hdr((info.pdi_flags & PDI_VNETHDR) != 0);
  entry.set_loss((info.pdi_flags & PDI_LOSS) != 0);
  if (const auto list = Attribute(answer, PACKET_DIAG_MCLIST)) DumpMemberships(*list, entry);
  if (const auto ring = Attribute(answer, PACKET_DIAG_RX_RING)) {
    DumpRing(*ring, *entry.mutable_rx_ring());
  }
  if (const auto ring = Attribute(answer, PACKET_DIAG_TX_RING)) {
    DumpRing(*ring, *entry.mutable_tx_ring());
  }
  if (const auto fanout = Attribute(answer, PACKET_DIAG_FANOUT)) {
    entry.set_fanout(ReadAs<std::uint32_t>(*fanout));
    const std::uint32_t how = entry.fanout() >> 16 & 0xff;
    if (how == PACKET_FANOUT_CBPF || how == PACKET_FANOUT_EBPF) {
      return Unimplemented("fanout by a BPF program cannot be checkpointed");
    }
  }
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  image::FileEntry result = NewEntry(file, image::FD_PACKETSK);
  image::PacketSockEntry& entry = *result.mutable_psk();
  RETURN_IF_ERROR(DumpCommon(file, context, entry));
  const Result<std::string> answer = AskPacketDiag(file);
  if (!answer.ok()) return Unimplemented(NameOf(file) + ": " + Message(answer.status()));
  const auto message = ReadAs<packet_diag_msg>(*answer);
  entry.set_type(message.pdiag_type);
  entry.set_protocol(htons(message.pdiag_num));
  RETURN_IF_ERROR(Annotate(DumpInfo(*answer, entry), NameOf(file)));
  ASSIGN_OR_RETURN(*entry.mutable_opts(), DumpSocketOptions(file));
  for (const int name : kOptions) {
    const Result<int> value = SocketOption(file.borrowed.get(), SOL_PACKET, name);
    if (!value.ok()) continue;  // a newer kernel's
    image::StasisSocketOption& option = *entry.add_stasis_options();
    option.set_level(SOL_PACKET);
    option.set_name(name);
    option.set_value(*value);
  }
  ASSIGN_OR_RETURN(const short poll, PollNow(file.borrowed.get(), POLLIN));
  if ((poll & POLLIN) != 0)
    context.Note(NameOf(file) + ": frames that nobody has read will be gone");
  return result;
}

// ---- restore ----

Status SetInt(int fd, int name, std::uint32_t value) {
  return SetSocketOption(fd, SOL_PACKET, name, static_cast<int>(value));
}

Status RestoreRing(int fd, int name, const image::PacketRing& ring, FileActor& actor) {
  if (std::uint64_t{ring.block_size()} * ring.block_nr() > kRingLimitBytes) {
    return ResourceExhausted("a packet ring of more than 1 GiB");
  }
  tpacket_req3 request = {};
  request.tp_block_size = ring.block_size();
  request.tp_block_nr = ring.block_nr();
  request.tp_frame_size = ring.frame_size();
  request.tp_frame_nr = ring.frame_nr();
  request.tp_retire_blk_tov = ring.retire_tmo();
  request.tp_sizeof_priv = ring.sizeof_priv();
  request.tp_feature_req_word = ring.features();
  return Annotate(actor.SetOption(fd, SOL_PACKET, name, std::as_bytes(std::span(&request, 1))),
                  "packet ring");
}

// What the kernel takes before rings only.
Status RestoreShape(int fd, const image::PacketSockEntry& entry) {
  const std::pair<int, std::uint32_t> settings[] = {
      {PACKET_VERSION, entry.version()},     {PACKET_RESERVE, entry.reserve()},
      {PACKET_LOSS, entry.loss()},           {PACKET_VNET_HDR, entry.vnet_hdr()},
      {PACKET_AUXDATA, entry.aux_data()},    {PACKET_ORIGDEV, entry.orig_dev()},
      {PACKET_TIMESTAMP, entry.timestamp()}, {PACKET_COPY_THRESH, entry.copy_thresh()},
  };
  for (const auto& [name, value] : settings) {
    if (value != 0) RETURN_IF_ERROR(SetInt(fd, name, value));
  }
  for (const image::StasisSocketOption& option : entry.stasis_options()) {
    const bool known = std::ranges::find(kOptions, option.name()) != kOptions.end();
    if (option.level() != SOL_PACKET || !known || option.value() == 0) continue;
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_PACKET, option.name(), option.value()));
  }
  return OkStatus();
}

Status RestoreMemberships(int fd, const image::PacketSockEntry& entry, FileActor& actor) {
  if (static_cast<std::size_t>(entry.mclist_size()) > kMembershipLimit) {
    return DataLoss("a packet socket of too many memberships");
  }
  for (const image::PacketMclist& membership : entry.mclist()) {
    struct {
      int index;
      unsigned short type, length;
      std::array<unsigned char, 32> address;  // MAX_ADDR_LEN
    } request = {};
    request.index = static_cast<int>(membership.index());
    request.type = static_cast<unsigned short>(membership.type());
    if (membership.addr().size() > request.address.size()) return DataLoss("a strange address");
    request.length = static_cast<unsigned short>(membership.addr().size());
    std::ranges::copy(membership.addr(), request.address.begin());
    RETURN_IF_ERROR(Annotate(actor.SetOption(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP,
                                             std::as_bytes(std::span(&request, 1))),
                             "membership of a packet socket"));
  }
  return OkStatus();
}

// The old address: an interface by its name.
Status BindByName(int fd, const image::PacketSockEntry& entry, FileActor& actor) {
  if (entry.ifindex() == 0) return OkStatus();
  ifreq request = {};
  request.ifr_ifindex = static_cast<int>(entry.ifindex());
  if (::ioctl(fd, SIOCGIFNAME, &request) != 0) {
    return SyscallError(errno, "name of network interface " + std::to_string(entry.ifindex()));
  }
  sockaddr address = {};
  address.sa_family = AF_PACKET;
  std::memcpy(address.sa_data, request.ifr_name, sizeof(address.sa_data) - 1);
  return actor.Bind(fd, std::as_bytes(std::span(&address, 1)));
}

Status Bind(int fd, const image::PacketSockEntry& entry, FileActor& actor) {
  if (entry.type() == SOCK_PACKET) return BindByName(fd, entry, actor);
  if (entry.ifindex() == 0 && entry.protocol() == 0) return OkStatus();
  sockaddr_ll address = {};
  address.sll_family = AF_PACKET;
  address.sll_protocol = static_cast<unsigned short>(entry.protocol());
  address.sll_ifindex = static_cast<int>(entry.ifindex());
  return actor.Bind(fd, std::as_bytes(std::span(&address, 1)));
}

Result<UniqueFd> Make(const image::PacketSockEntry& entry, FileActor& actor) {
  const int type = static_cast<int>(entry.type());
  if (type != SOCK_RAW && type != SOCK_DGRAM && type != SOCK_PACKET) {
    return DataLoss("a packet socket of a strange type");
  }
  // Of the oldest type bind(2) does not tell the protocol.
  Result<UniqueFd> fd =
      actor.Socket(AF_PACKET, type, type == SOCK_PACKET ? static_cast<int>(entry.protocol()) : 0);
  if (ErrnoOf(fd.status()) == EPERM) {
    return FailedPrecondition("packet sockets need CAP_NET_RAW, which this container has not");
  }
  return fd;
}

Result<UniqueFd> Restore(const image::FileEntry& file, FileRestoreContext& context) {
  if (!file.has_psk()) return DataLoss("no packet socket in the entry");
  const image::PacketSockEntry& entry = file.psk();
  RETURN_IF_ERROR(context.EnterNetwork(entry.ns_id()));
  FileActor& actor = context.actor();
  ASSIGN_OR_RETURN(UniqueFd fd, Make(entry, actor));
  RETURN_IF_ERROR(RestoreShape(fd.get(), entry));
  RETURN_IF_ERROR(RestorePrivilegedOptions(fd.get(), entry.opts(), actor));
  RETURN_IF_ERROR(RestoreSocketOptions(fd.get(), entry.opts()));
  if (entry.has_rx_ring()) {
    RETURN_IF_ERROR(RestoreRing(fd.get(), PACKET_RX_RING, entry.rx_ring(), actor));
  }
  if (entry.has_tx_ring()) {
    RETURN_IF_ERROR(RestoreRing(fd.get(), PACKET_TX_RING, entry.tx_ring(), actor));
  }
  RETURN_IF_ERROR(RestoreMemberships(fd.get(), entry, actor));
  RETURN_IF_ERROR(Annotate(Bind(fd.get(), entry, actor),
                           "bind a packet socket to interface " + std::to_string(entry.ifindex())));
  if (entry.fanout() != kNoFanout) RETURN_IF_ERROR(SetInt(fd.get(), PACKET_FANOUT, entry.fanout()));
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.flags()));
  return fd;
}

}  // namespace

const FileKind kPacketSocket = {.name = "packet socket",
                                .owns = Owns,
                                .dump = Dump,
                                .type = image::FD_PACKETSK,
                                .restore = Restore};

}  // namespace stasis::engine
