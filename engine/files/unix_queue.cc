// Image    "sk-queues": a record a message, with the id of the file that would receive it
// Dump     with SO_PEEK_OFF set every MSG_PEEK begins where the one before ended; it is a property
//          of the socket, so it is put back. Descriptors in a message (SCM_RIGHTS) arrive with each
//          peek, as new ones of ours
// Lost     who sent a message: addresses and SCM_CREDENTIALS
// Source   socket(7) SO_PEEK_OFF, unix(7); tested on 6.18
#include "engine/files/unix_queue.h"

#include <absl/cleanup/cleanup.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;  // more than the largest datagram
constexpr std::size_t kMostRights = 253;                   // SCM_MAX_FD

// Closes the descriptors that came with a message, and says whether there were any.
bool DropRights(msghdr& message) {
  bool any = false;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    any = true;
    for (std::size_t at = CMSG_LEN(0); at + sizeof(int) <= part->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<const char*>(part) + at, sizeof(fd));
      const UniqueFd closed(fd);
    }
  }
  return any;
}

struct Piece {
  bool end = false;
  std::size_t length = 0;
};

Result<Piece> Peek(const OpenFile& file, std::vector<char>& buffer) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMostRights * sizeof(int)) + 256> control;
  iovec part = {.iov_base = buffer.data(), .iov_len = buffer.size()};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t length =
      ::recvmsg(file.borrowed.get(), &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (length < 0) {
    // EINVAL and ENOTCONN: a socket that receives nothing in this state.
    if (errno == EAGAIN || errno == ENOTCONN || errno == ECONNRESET) return Piece{.end = true};
    return SyscallError(errno, "peek " + NameOf(file));
  }
  if (DropRights(message) || (message.msg_flags & MSG_CTRUNC) != 0) {
    return Unimplemented(NameOf(file) +
                         ": descriptors that wait in a message cannot be checkpointed yet");
  }
  if ((message.msg_flags & MSG_TRUNC) != 0) {
    return Unimplemented(NameOf(file) + ": a message of more than 1 MiB waits in it");
  }
  return Piece{.length = static_cast<std::size_t>(length)};
}

// Room for all that is about to be sent; what a container may use later is set afterwards.
Status MakeRoom(int sender, std::uint64_t bytes) {
  // The kernel charges more than the bytes, at most a page and some more for each message.
  const int room = static_cast<int>(std::min(bytes * 4 + (1 << 20), std::uint64_t{1} << 28));
  return SetSocketOption(sender, SOL_SOCKET, SO_SNDBUFFORCE, room);
}

}  // namespace

Status DumpUnixQueue(const OpenFile& file, int type, FileDumpContext& context) {
  if (context.only_looks()) return OkStatus();
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const int offset, SocketOption(fd, SOL_SOCKET, SO_PEEK_OFF));
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_PEEK_OFF, 0));
  const absl::Cleanup put_back = [&] {
    // It has just taken another value, so it takes its old one.
    (void)SetSocketOption(fd, SOL_SOCKET, SO_PEEK_OFF, offset);
  };
  std::vector<char> buffer(kPieceBytes);
  std::uint64_t total = 0;
  while (true) {
    ASSIGN_OR_RETURN(const Piece piece, Peek(file, buffer));
    // Of a connection, 0 bytes are its end; among datagrams, an empty one.
    if (piece.end || (piece.length == 0 && type != SOCK_DGRAM)) return OkStatus();
    total += piece.length + 1;
    if (total > kUnixQueueLimitBytes) {
      return Unimplemented(NameOf(file) + ": more than 16 MiB wait in it");
    }
    image::SkPacketEntry record;
    record.set_id_for(file.id);
    record.set_length(static_cast<std::uint32_t>(piece.length));
    context.AddRecord("sk-queues", record.SerializeAsString(),
                      std::string(buffer.data(), piece.length));
  }
}

Status RestoreUnixQueue(int sender, std::uint32_t id, FileRestoreContext& context) {
  using Record = FileRestoreContext::Record;
  ASSIGN_OR_RETURN(const std::span<const Record> records, context.Records("sk-queues"));
  std::vector<std::string_view> messages;
  std::uint64_t total = 0;
  for (const Record& record : records) {
    image::SkPacketEntry entry;
    if (!entry.ParsePartialFromString(record.message) || !entry.IsInitialized()) {
      return DataLoss("sk-queues: a record does not parse");
    }
    if (entry.id_for() != id) continue;
    if (entry.scm_size() > 0) {
      return Unimplemented("descriptors that wait in a message cannot be restored yet");
    }
    total += record.bytes.size() + 1;
    messages.push_back(record.bytes);
  }
  if (total > kUnixQueueLimitBytes) return InvalidArgument("sk-queues: too much for one socket");
  if (messages.empty()) return OkStatus();

  ASSIGN_OR_RETURN(const int size, SocketOption(sender, SOL_SOCKET, SO_SNDBUF));
  RETURN_IF_ERROR(MakeRoom(sender, total));
  for (const std::string_view message : messages) {
    const ssize_t sent =
        ::send(sender, message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent != static_cast<ssize_t>(message.size())) {
      return SyscallError(sent < 0 ? errno : EAGAIN, "send what waited on a unix socket");
    }
  }
  // Back to what it was; SO_BUF_LOCK (Linux 5.15) says that no program chose it.
  RETURN_IF_ERROR(SetSocketOption(sender, SOL_SOCKET, SO_SNDBUFFORCE, size / 2));
  constexpr int kBufLock = 72;
  (void)SetSocketOption(sender, SOL_SOCKET, kBufLock, 0);  // for reports only on AF_UNIX
  return OkStatus();
}

}  // namespace stasis::engine
