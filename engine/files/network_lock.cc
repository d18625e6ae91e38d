// Image   The table has CRIU's name for it, "CRIU-" and the run id of the inventory, family inet
// Source  nft(8), linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c, nfnetlink.c; tested on 6.18
// Rule    Messages between BATCH_BEGIN and BATCH_END take effect together or not at all; of a failed batch
//         each bad message is answered by its error.
// Rule    A table with NFT_TABLE_F_OWNER goes when the netlink socket that made it is closed (nft_rcv_nl_event()), so
//         also when its process is killed. It cannot be turned into one that stays: that is another one.
// Rule    What is sent to an address of the same namespace keeps its mark on the way.
#include "engine/files/network_lock.h"

#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <functional>
#include <string_view>

#include "engine/base/namespace.h"
#include "engine/files/socket.h"
#include "engine/files/tcp_segment.h"

namespace stasis::engine {
namespace {

constexpr char kInput[] = "input", kOutput[] = "output";
constexpr std::int32_t kPriority = -400;  // before connection tracking
constexpr std::size_t kRunIdLimit = 64;
constexpr int kBufferBytes = 8 << 20;
constexpr std::uint32_t kIpv4Source = 12, kIpv6Source = 8;  // offsets in IP headers
constexpr std::uint32_t kPortBytes = 2;
constexpr std::uint32_t kPassingMark = 0xc114;  // CRIU's

class Batch {
 public:
  using Fill = std::function<void()>;

  Batch() { Control(NFNL_MSG_BATCH_BEGIN); }

  void Message(int type, int flags, const Fill& fill) {
    last_ = bytes_.size();
    Header(NFNL_SUBSYS_NFTABLES << 8 | type, flags, NFPROTO_INET, 0);
    fill();
    SetLength(last_);
  }

  void Text(int type, std::string_view text) { Attribute(type, std::string(text) + '\0'); }
  void Number(int type, std::uint32_t value) {
    const std::uint32_t big = htonl(value);
    Attribute(type, {reinterpret_cast<const char*>(&big), sizeof(big)});
  }
  void Attribute(int type, std::string_view bytes) {
    const std::size_t start = Open(type);
    bytes_ += bytes;
    Close(start);
  }
  void Nested(int type, const Fill& fill) {
    const std::size_t start = Open(type | NLA_F_NESTED);
    fill();
    Close(start);
  }
  void Expression(std::string_view name, const Fill& fill) {
    Nested(NFTA_LIST_ELEM, [&] {
      Text(NFTA_EXPR_NAME, name);
      Nested(NFTA_EXPR_DATA, fill);
    });
  }

  /// The whole; the last message asks to be answered.
  const std::string& Finish() {
    nlmsghdr header;
    std::memcpy(&header, bytes_.data() + last_, sizeof(header));
    header.nlmsg_flags |= NLM_F_ACK;
    std::memcpy(bytes_.data() + last_, &header, sizeof(header));
    Control(NFNL_MSG_BATCH_END);
    return bytes_;
  }

 private:
  void Header(int type, int flags, int family, std::uint16_t resource) {
    nlmsghdr header = {};
    header.nlmsg_type = static_cast<std::uint16_t>(type);
    header.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
    bytes_.append(reinterpret_cast<const char*>(&header), sizeof(header));
    nfgenmsg generic = {};
    generic.nfgen_family = static_cast<std::uint8_t>(family);
    generic.res_id = htons(resource);
    bytes_.append(reinterpret_cast<const char*>(&generic), sizeof(generic));
  }
  void Control(int type) {
    const std::size_t start = bytes_.size();
    Header(type, 0, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
    SetLength(start);
  }
  void SetLength(std::size_t start) {
    const auto length = static_cast<std::uint32_t>(bytes_.size() - start);
    std::memcpy(bytes_.data() + start, &length, sizeof(length));
  }
  std::size_t Open(int type) {
    const std::size_t start = bytes_.size();
    nlattr attribute = {};
    attribute.nla_type = static_cast<std::uint16_t>(type);
    bytes_.append(reinterpret_cast<const char*>(&attribute), sizeof(attribute));
    return start;
  }
  void Close(std::size_t start) {
    const auto length = static_cast<std::uint16_t>(bytes_.size() - start);
    std::memcpy(bytes_.data() + start, &length, sizeof(length));
    bytes_.resize(NLA_ALIGN(bytes_.size()));
  }

  std::string bytes_;
  std::size_t last_ = 0;
};

std::string TableOf(const std::string& run_id) { return "CRIU-" + run_id; }
std::string OwnedTableOf(const std::string& run_id) { return "stasis-" + run_id; }

bool IsRunId(const std::string& text) {
  return !text.empty() && text.size() <= kRunIdLimit && std::ranges::all_of(text, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-';
  });
}

// Goes on only for packets whose register has these bytes.
void Compare(Batch& batch, std::string_view bytes) {
  batch.Expression("cmp", [&] {
    batch.Number(NFTA_CMP_SREG, NFT_REG_1);
    batch.Number(NFTA_CMP_OP, NFT_CMP_EQ);
    batch.Nested(NFTA_CMP_DATA, [&] { batch.Attribute(NFTA_DATA_VALUE, bytes); });
  });
}

void CompareMeta(Batch& batch, std::uint32_t key, std::string_view value) {
  batch.Expression("meta", [&] {
    batch.Number(NFTA_META_KEY, key);
    batch.Number(NFTA_META_DREG, NFT_REG_1);
  });
  Compare(batch, value);
}

void ComparePayload(Batch& batch, std::uint32_t base, std::uint32_t offset,
                    std::string_view bytes) {
  batch.Expression("payload", [&] {
    batch.Number(NFTA_PAYLOAD_DREG, NFT_REG_1);
    batch.Number(NFTA_PAYLOAD_BASE, base);
    batch.Number(NFTA_PAYLOAD_OFFSET, offset);
    batch.Number(NFTA_PAYLOAD_LEN, static_cast<std::uint32_t>(bytes.size()));
  });
  Compare(batch, bytes);
}

std::string_view AddressBytes(const InetAddress& address) {
  return {reinterpret_cast<const char*>(address.words.data()),
          address.word_count() * sizeof(address.words[0])};
}

void ComparePort(Batch& batch, std::uint32_t offset, std::uint16_t port) {
  const std::uint16_t big = htons(port);
  ComparePayload(batch, NFT_PAYLOAD_TRANSPORT_HEADER, offset,
                 {reinterpret_cast<const char*>(&big), sizeof(big)});
}

void CompareMetaByte(Batch& batch, std::uint32_t key, char value) {
  CompareMeta(batch, key, {&value, 1});
}

void Decide(Batch& batch, std::uint32_t verdict) {
  batch.Expression("immediate", [&] {
    batch.Number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
    batch.Nested(NFTA_IMMEDIATE_DATA, [&] {
      batch.Nested(NFTA_DATA_VERDICT, [&] { batch.Number(NFTA_VERDICT_CODE, verdict); });
    });
  });
}

void AddRule(Batch& batch, const std::string& table, const char* chain, const Batch::Fill& fill) {
  batch.Message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, [&] {
    batch.Text(NFTA_RULE_TABLE, table);
    batch.Text(NFTA_RULE_CHAIN, chain);
    batch.Nested(NFTA_RULE_EXPRESSIONS, fill);
  });
}

// What the peer of a connection sends to it.
void DropFromPeer(Batch& batch, const std::string& table, const ConnectionEnds& ends) {
  const InetAddress from = Unmapped(ends.remote), to = Unmapped(ends.local);
  const bool v4 = from.family == AF_INET;
  const std::uint32_t source = v4 ? kIpv4Source : kIpv6Source;
  AddRule(batch, table, kInput, [&] {
    CompareMetaByte(batch, NFT_META_NFPROTO, v4 ? NFPROTO_IPV4 : NFPROTO_IPV6);
    CompareMetaByte(batch, NFT_META_L4PROTO, IPPROTO_TCP);
    ComparePayload(batch, NFT_PAYLOAD_NETWORK_HEADER, source, AddressBytes(from));
    ComparePayload(batch, NFT_PAYLOAD_NETWORK_HEADER,
                   source + static_cast<std::uint32_t>(AddressBytes(from).size()),
                   AddressBytes(to));
    ComparePort(batch, 0, from.port);
    ComparePort(batch, kPortBytes, to.port);
    Decide(batch, NF_DROP);
  });
}

void DropUnmarked(Batch& batch, const std::string& table, const char* chain) {
  AddRule(batch, table, chain, [&] {
    const std::uint32_t mark = kPassingMark;
    CompareMeta(batch, NFT_META_MARK, {reinterpret_cast<const char*>(&mark), sizeof(mark)});
    Decide(batch, NF_ACCEPT);
  });
  AddRule(batch, table, chain, [&] { Decide(batch, NF_DROP); });
}

void AddTable(Batch& batch, const std::string& table, std::uint32_t flags) {
  batch.Message(NFT_MSG_NEWTABLE, NLM_F_CREATE, [&] {
    batch.Text(NFTA_TABLE_NAME, table);
    if (flags != 0) batch.Number(NFTA_TABLE_FLAGS, flags);
  });
}

void AddChain(Batch& batch, const std::string& table, const char* chain, std::uint32_t hook) {
  batch.Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, [&] {
    batch.Text(NFTA_CHAIN_TABLE, table);
    batch.Text(NFTA_CHAIN_NAME, chain);
    batch.Nested(NFTA_CHAIN_HOOK, [&] {
      batch.Number(NFTA_HOOK_HOOKNUM, hook);
      batch.Number(NFTA_HOOK_PRIORITY, static_cast<std::uint32_t>(kPriority));
    });
    batch.Text(NFTA_CHAIN_TYPE, "filter");
  });
}

std::string ForConnections(const std::string& table, std::uint32_t flags,
                           std::span<const ConnectionEnds> connections) {
  Batch batch;
  AddTable(batch, table, flags);
  AddChain(batch, table, kInput, NF_INET_LOCAL_IN);
  for (const ConnectionEnds& ends : connections) DropFromPeer(batch, table, ends);
  return batch.Finish();
}

std::string ForWhole(const std::string& table, std::uint32_t flags) {
  Batch batch;
  AddTable(batch, table, flags);
  AddChain(batch, table, kInput, NF_INET_LOCAL_IN);
  AddChain(batch, table, kOutput, NF_INET_LOCAL_OUT);
  DropUnmarked(batch, table, kInput);
  DropUnmarked(batch, table, kOutput);
  return batch.Finish();
}

// The socket over which it was sent.
Result<UniqueFd> SendBatch(const std::string& bytes) {
  UniqueFd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
  if (!netlink) {
    return SyscallError(errno, "netfilter socket");
  }
  (void)SetSocketOption(netlink.get(), SOL_SOCKET, SO_SNDBUFFORCE, kBufferBytes);  // send(2) tells
  constexpr timeval kTimeout = {.tv_sec = 5, .tv_usec = 0};
  RETURN_IF_ERROR(SetSocketOption(netlink.get(), SOL_SOCKET, SO_RCVTIMEO, kTimeout));
  if (::send(netlink.get(), bytes.data(), bytes.size(), 0) < 0) {
    return SyscallError(errno, "send to netfilter");
  }
  struct {
    nlmsghdr header;
    nlmsgerr error;
  } answer = {};
  if (::recv(netlink.get(), &answer, sizeof(answer), 0) < 0) {
    return SyscallError(errno, "answer of netfilter");
  }
  if (answer.header.nlmsg_type != NLMSG_ERROR) return Internal("netfilter: a strange answer");
  if (answer.error.error != 0) return SyscallError(-answer.error.error, "nf_tables");
  return netlink;
}

Result<UniqueFd> SendBatchIn(int ns, const std::string& bytes) {
  UniqueFd socket;
  RETURN_IF_ERROR(InNamespace(ns, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(socket, SendBatch(bytes));
    return OkStatus();
  }));
  return socket;
}

}  // namespace

Result<NetworkLock> NetworkLock::Make(UniqueFd ns, const std::string& owned, std::string kept) {
  Result<UniqueFd> owner = SendBatchIn(ns.get(), owned);
  if (ErrnoOf(owner.status()) == EOPNOTSUPP || ErrnoOf(owner.status()) == EPROTONOSUPPORT) {
    return Unimplemented("this kernel has no nf_tables");
  }
  RETURN_IF_ERROR(owner.status());
  return NetworkLock(std::move(ns), *std::move(owner), std::move(kept));
}

Result<NetworkLock> NetworkLock::Take(UniqueFd ns, const std::string& run_id,
                                      std::span<const ConnectionEnds> connections) {
  return Make(std::move(ns), ForConnections(OwnedTableOf(run_id), NFT_TABLE_F_OWNER, connections),
              ForConnections(TableOf(run_id), 0, connections));
}

Result<NetworkLock> NetworkLock::TakeWhole(UniqueFd ns, const std::string& run_id) {
  return Make(std::move(ns), ForWhole(OwnedTableOf(run_id), NFT_TABLE_F_OWNER),
              ForWhole(TableOf(run_id), 0));
}

Status NetworkLock::Keep() {
  RETURN_IF_ERROR(SendBatchIn(ns_.get(), kept_).status());
  owner_.Reset();
  return OkStatus();
}

Status UnlockNetwork(int ns, const std::string& run_id) {
  if (!IsRunId(run_id)) return OkStatus();
  Batch batch;
  batch.Message(NFT_MSG_DELTABLE, 0, [&] { batch.Text(NFTA_TABLE_NAME, TableOf(run_id)); });
  const std::string& bytes = batch.Finish();
  const Status status = SendBatchIn(ns, bytes).status();
  const int error = ErrnoOf(status);
  const bool none = error == ENOENT || error == EOPNOTSUPP || error == EPROTONOSUPPORT;
  return none ? OkStatus() : status;
}

}  // namespace stasis::engine
