// Image    "sk-queues": a record a message, with the id of the file that would receive it, the ids of the
//          files in it (SCM_RIGHTS), and of ours who sent it: name and SCM_CREDENTIALS
// Dump     with SO_PEEK_OFF set every MSG_PEEK begins where the one before ended; it is a property
//          of the socket, so it is put back. Descriptors in a message (SCM_RIGHTS) arrive with each
//          peek, as new ones of ours
// Rule     Of a stream, a peek joins what was sent without descriptors and the next part with some, and gives
//          these however short it is. Who reads the former alone gets none, so they are told apart by the
//          copying, which goes part by part and stops where one faults
// Rule     An empty datagram that was peeked is passed over by the next peek with SO_PEEK_OFF, so a queue is read
//          once a dump. A second dump of the same process does not see it
// Rule     Credentials are shown while the receiver has SO_PASSCRED. Any may be sent with CAP_SYS_ADMIN,
//          CAP_SETUID and CAP_SETGID, but the pid must be of a process (scm_check_creds())
// Lost     credentials of processes that are not in the tree, and those without SO_PASSCRED
// Source   socket(7) SO_PEEK_OFF, unix(7), net/unix/af_unix.c, net/core/scm.c; tested on 6.18
#include "engine/files/unix_queue.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include "engine/files/description.h"
#include "engine/files/socket.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;  // more than the largest datagram
constexpr std::size_t kMostRights = 253;                   // SCM_MAX_FD
constexpr int kPidfd = 4;                                  // SCM_PIDFD, Linux 6.5

struct Message {
  bool end = false;
  std::size_t length = 0;
  std::string bytes = {};  // in what is kept
  std::vector<UniqueFd> rights = {};
  std::optional<ucred> credentials = {};
  std::string sender = {};
};

void ReadControl(msghdr& header, Message& message) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET) continue;
    if (part->cmsg_type == SCM_CREDENTIALS && part->cmsg_len >= CMSG_LEN(sizeof(ucred))) {
      std::memcpy(&message.credentials.emplace(), CMSG_DATA(part), sizeof(ucred));
    }
    if (part->cmsg_type != SCM_RIGHTS && part->cmsg_type != kPidfd) continue;
    for (std::size_t at = CMSG_LEN(0); at + sizeof(int) <= part->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<const char*>(part) + at, sizeof(fd));
      UniqueFd ours(fd);
      if (part->cmsg_type == SCM_RIGHTS) message.rights.push_back(std::move(ours));
    }
  }
}

Result<Message> Peek(const OpenFile& file, std::span<char> buffer) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMostRights * sizeof(int)) + 256> control;
  sockaddr_un sender = {};
  iovec part = {.iov_base = buffer.data(), .iov_len = buffer.size()};
  msghdr header = {};
  header.msg_name = &sender;
  header.msg_namelen = sizeof(sender);
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t length =
      ::recvmsg(file.borrowed.get(), &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (length < 0) {
    // EINVAL and ENOTCONN: a socket that receives nothing in this state.
    if (errno == EAGAIN || errno == ENOTCONN || errno == ECONNRESET) return Message{.end = true};
    return SyscallError(errno, "peek " + NameOf(file));
  }
  Message message{.length = static_cast<std::size_t>(length)};
  ReadControl(header, message);
  if ((header.msg_flags & MSG_CTRUNC) != 0) {
    return ResourceExhausted(NameOf(file) +
                             ": the descriptors in a message (raise our LimitNOFILE)");
  }
  constexpr std::size_t kHead = offsetof(sockaddr_un, sun_path);
  if (header.msg_namelen > kHead)
    message.sender.assign(sender.sun_path, header.msg_namelen - kHead);
  return message;
}

// A message as sendmsg(2) takes it.
class Outgoing {
 public:
  Outgoing(const UnixSender& sender, std::string_view bytes) : sender_(sender), bytes_(bytes) {}

  void AddControl(int type, const void* data, std::size_t size) {
    const std::size_t at = control_.size();
    control_.resize(at + CMSG_SPACE(size));
    cmsghdr head = {};
    head.cmsg_level = SOL_SOCKET;
    head.cmsg_type = type;
    head.cmsg_len = CMSG_LEN(size);
    std::memcpy(control_.data() + at, &head, sizeof(head));
    std::memcpy(control_.data() + at + CMSG_LEN(0), data, size);
  }

  // System calls only; an errno, 0 for success.
  int Send() const {
    iovec part = {.iov_base = const_cast<char*>(bytes_.data()), .iov_len = bytes_.size()};
    msghdr header = {};
    if (!sender_.address.empty()) {
      header.msg_name = const_cast<std::byte*>(sender_.address.data());
      header.msg_namelen = static_cast<socklen_t>(sender_.address.size());
    }
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = const_cast<char*>(control_.data());
    header.msg_controllen = control_.size();
    const ssize_t sent = ::sendmsg(sender_.fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(bytes_.size())) return 0;
    return sent < 0 ? errno : EAGAIN;
  }

 private:
  const UnixSender& sender_;
  std::string_view bytes_;
  std::vector<char> control_;
};

// The messages that wait on a socket, one by one.
class Queue {
 public:
  static Result<Queue> Open(const OpenFile& file) {
    ASSIGN_OR_RETURN(const int type, SocketOption(file.borrowed.get(), SOL_SOCKET, SO_TYPE));
    ASSIGN_OR_RETURN(const short poll, PollNow(file.borrowed.get(), POLLIN | POLLPRI | POLLRDHUP));
    if ((poll & POLLPRI) != 0) {
      return Unimplemented(NameOf(file) + ": a byte sent with MSG_OOB waits in it");
    }
    return Queue(file, type, poll);
  }

  bool empty() const { return (poll_ & POLLIN) == 0; }

  Result<std::vector<Message>> ReadAll() {
    std::vector<Message> messages;
    const int fd = file_.borrowed.get();
    ASSIGN_OR_RETURN(const int offset, SocketOption(fd, SOL_SOCKET, SO_PEEK_OFF));
    const absl::Cleanup put_back = [&] {
      // It has just taken another value, so it takes its old one.
      (void)SetSocketOption(fd, SOL_SOCKET, SO_PEEK_OFF, offset);
    };
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_PEEK_OFF, 0));
    std::vector<char> buffer(kPieceBytes);
    std::uint64_t count = 0;
    while (true) {
      ASSIGN_OR_RETURN(Message message, Next(buffer));
      if (message.end) return messages;
      at_ += message.length;
      if (at_ + ++count > kUnixQueueLimitBytes) {
        return Unimplemented(NameOf(file_) + ": more than 16 MiB wait in it");
      }
      message.bytes.assign(buffer.data(), message.length);
      messages.push_back(std::move(message));
    }
  }

 private:
  Queue(const OpenFile& file, int type, short poll) : file_(file), type_(type), poll_(poll) {}

  Result<Message> Next(std::vector<char>& buffer) {
    ASSIGN_OR_RETURN(Message message, Peek(file_, buffer));
    if (message.end) return message;
    if (type_ != SOCK_STREAM && message.length == buffer.size()) {
      return Unimplemented(NameOf(file_) + ": a message of 1 MiB or more waits in it");
    }
    if (message.length == 0 && type_ != SOCK_DGRAM) return AtZero(std::move(message));
    if (type_ != SOCK_STREAM || message.rights.empty() || message.length == 1) return message;
    return FirstPart(message.length, buffer);
  }

  // Of a connection, 0 bytes are its end; among datagrams and packets, an empty one.
  Result<Message> AtZero(Message message) const {
    message.end = true;
    if (type_ == SOCK_STREAM) return message;
    if ((poll_ & POLLRDHUP) == 0) {
      message.end = false;
      return message;
    }
    int waiting = 0;
    if (::ioctl(file_.borrowed.get(), FIONREAD, &waiting) == 0 &&
        static_cast<std::uint64_t>(waiting) > at_) {
      return Unimplemented(NameOf(file_) +
                           ": an empty packet waits in a connection that has ended");
    }
    return message;
  }

  // Of `whole` bytes what comes before the part with descriptors, or all when they begin with it.
  Result<Message> FirstPart(std::size_t whole, std::vector<char>& buffer) {
    ASSIGN_OR_RETURN(const std::size_t before, StartOfLastPart(whole));
    if (before == 0) return PeekAgain(std::span(buffer).first(whole));
    ASSIGN_OR_RETURN(Message part, PeekAgain(std::span(buffer).first(before)));
    part.rights.clear();
    return part;
  }

  // Of `length` bytes that are peeked, where the last part begins that was sent at once: it does not fit into
  // memory of one byte less, and what was copied before that is what comes before it.
  Result<std::size_t> StartOfLastPart(std::size_t length) const {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    void* const area = ::mmap(nullptr, kPieceBytes + page, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) return SyscallError(errno, "mmap");
    const absl::Cleanup unmap = [&] { ::munmap(area, kPieceBytes + page); };
    char* const end = static_cast<char*>(area) + kPieceBytes;
    if (::mprotect(end, page, PROT_NONE) != 0) return SyscallError(errno, "mprotect");
    const Result<Message> part = PeekAgain(std::span(end - (length - 1), length));
    if (part.ok()) return part->length;
    if (ErrnoOf(part.status()) == EFAULT) return 0;
    return part.status();
  }

  Result<Message> PeekAgain(std::span<char> buffer) const {
    RETURN_IF_ERROR(
        SetSocketOption(file_.borrowed.get(), SOL_SOCKET, SO_PEEK_OFF, static_cast<int>(at_)));
    return Peek(file_, buffer);
  }

  const OpenFile& file_;
  int type_;
  short poll_;
  std::uint64_t at_ = 0;  // bytes that came before
};

Status DumpCredentials(const OpenFile& file, const ucred& from, FileDumpContext& context,
                       image::SkPacketEntry& record) {
  if (from.pid == 0) return OkStatus();  // none, or of a process that we cannot see
  const pid_t pid = context.ToNamespacePid(from.pid);
  if (pid == 0) {
    context.Note(NameOf(file) +
                 ": a message in it is of a process outside the tree or gone, which will "
                 "not be told");
    return OkStatus();
  }
  image::StasisCredentials& credentials = *record.mutable_stasis_credentials();
  credentials.set_pid(static_cast<std::uint32_t>(pid));
  credentials.set_uid(context.ids().users.ToInside(from.uid));
  credentials.set_gid(context.ids().groups.ToInside(from.gid));
  return OkStatus();
}

// Room for all that is about to be sent; what a container may use later is set afterwards.
Status MakeRoom(int sender, std::uint64_t bytes) {
  // The kernel charges more than the bytes, at most a page and some more for each message.
  const int room = static_cast<int>(std::min(bytes * 4 + (1 << 20), std::uint64_t{1} << 28));
  return SetSocketOption(sender, SOL_SOCKET, SO_SNDBUFFORCE, room);
}

struct Waiting {
  image::SkPacketEntry entry;
  std::string_view bytes;
};

Result<std::vector<Waiting>> WaitingOn(std::uint32_t id, FileRestoreContext& context) {
  using Record = FileRestoreContext::Record;
  ASSIGN_OR_RETURN(const std::span<const Record> records, context.Records("sk-queues"));
  std::vector<Waiting> waiting;
  for (const Record& record : records) {
    Waiting one;
    if (!one.entry.ParsePartialFromString(record.message) || !one.entry.IsInitialized()) {
      return DataLoss("sk-queues: a record does not parse");
    }
    if (one.entry.id_for() != id) continue;
    one.bytes = record.bytes;
    waiting.push_back(std::move(one));
  }
  return waiting;
}

Status Send(const Waiting& message, const UnixSender& sender, FileRestoreContext& context) {
  Outgoing outgoing(sender, message.bytes);
  std::vector<int> rights;
  for (const image::ScmEntry& part : message.entry.scm()) {
    if (part.type() != SCM_RIGHTS) return DataLoss("sk-queues: a message of unknown content");
    for (const std::uint32_t id : part.rights()) {
      ASSIGN_OR_RETURN(const int fd, context.Restored(id));
      rights.push_back(fd);
    }
  }
  if (rights.size() > kMostRights) return DataLoss("sk-queues: too many descriptors in a message");
  if (!rights.empty()) outgoing.AddControl(SCM_RIGHTS, rights.data(), rights.size() * sizeof(int));

  int error = 0;
  if (message.entry.has_stasis_credentials()) {
    const image::StasisCredentials& from = message.entry.stasis_credentials();
    ucred credentials = {.pid = static_cast<pid_t>(from.pid()), .uid = 0, .gid = 0};
    ASSIGN_OR_RETURN(credentials.uid, context.ids().users.ToOutside(from.uid()));
    ASSIGN_OR_RETURN(credentials.gid, context.ids().groups.ToOutside(from.gid()));
    const auto [actor, actor_here] = context.actor().Pids();
    if (credentials.pid == actor) {
      credentials.pid = actor_here;
      outgoing.AddControl(SCM_CREDENTIALS, &credentials, sizeof(credentials));
      error = outgoing.Send();
    } else {
      const pid_t pid = credentials.pid;
      outgoing.AddControl(SCM_CREDENTIALS, &credentials, sizeof(credentials));
      const Status status = context.actor().AsProcess(pid, [&] { return outgoing.Send(); });
      if (!status.ok()) return Annotate(status, "send a message as pid " + std::to_string(pid));
    }
  } else {
    error = outgoing.Send();
  }
  return error == 0 ? OkStatus() : SyscallError(error, "send what waited on a unix socket");
}

}  // namespace

Result<std::vector<int>> FilesInUnixQueue(OpenFile& file) {
  std::vector<int> files;
  ASSIGN_OR_RETURN(const int listens, SocketOption(file.borrowed.get(), SOL_SOCKET, SO_ACCEPTCONN));
  if (listens != 0) return files;
  ASSIGN_OR_RETURN(Queue queue, Queue::Open(file));
  if (queue.empty()) return files;
  ASSIGN_OR_RETURN(std::vector<Message> read, queue.ReadAll());
  auto messages = std::make_shared<const std::vector<Message>>(std::move(read));
  for (const Message& message : *messages) {
    for (const UniqueFd& fd : message.rights) files.push_back(fd.get());
  }
  file.waiting = std::move(messages);
  return files;
}

Status DumpUnixQueue(const OpenFile& file, FileDumpContext& context) {
  if (file.waiting == nullptr) return OkStatus();
  for (const Message& message : *static_cast<const std::vector<Message>*>(file.waiting.get())) {
    image::SkPacketEntry record;
    record.set_id_for(file.id);
    record.set_length(static_cast<std::uint32_t>(message.length));
    if (!message.rights.empty()) {
      image::ScmEntry& part = *record.add_scm();
      part.set_type(SCM_RIGHTS);
      for (const UniqueFd& fd : message.rights) {
        ASSIGN_OR_RETURN(const std::uint32_t id, context.IdOf(fd.get()));
        part.add_rights(id);
      }
    }
    if (!message.sender.empty()) record.set_stasis_sender(message.sender);
    if (message.credentials) {
      RETURN_IF_ERROR(DumpCredentials(file, *message.credentials, context, record));
    }
    context.AddRecord("sk-queues", record.SerializeAsString(), message.bytes);
  }
  return OkStatus();
}

Result<bool> HasUnixQueue(std::uint32_t id, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const std::vector<Waiting> messages, WaitingOn(id, context));
  return !messages.empty();
}

Status RestoreUnixQueue(std::uint32_t id,
                        const std::function<Result<UnixSender>(const std::string&)>& sender_of,
                        FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const std::vector<Waiting> messages, WaitingOn(id, context));
  std::uint64_t total = 0;
  for (const Waiting& message : messages) total += message.bytes.size() + 1;
  if (total > kUnixQueueLimitBytes) return InvalidArgument("sk-queues: too much for one socket");
  for (const Waiting& message : messages) {
    ASSIGN_OR_RETURN(const UnixSender sender, sender_of(message.entry.stasis_sender()));
    ASSIGN_OR_RETURN(const int size, SocketOption(sender.fd, SOL_SOCKET, SO_SNDBUF));
    RETURN_IF_ERROR(MakeRoom(sender.fd, total));
    RETURN_IF_ERROR(Send(message, sender, context));
    // Back to what it was; SO_BUF_LOCK (Linux 5.15) says that no program chose it.
    RETURN_IF_ERROR(SetSocketOption(sender.fd, SOL_SOCKET, SO_SNDBUFFORCE, size / 2));
    constexpr int kBufLock = 72;
    (void)SetSocketOption(sender.fd, SOL_SOCKET, kBufLock, 0);  // for reports only on AF_UNIX
  }
  return OkStatus();
}

}  // namespace stasis::engine
