// State    key, owner, mode and limit by msgctl(2) IPC_STAT; messages by MSG_COPY (CONFIG_CHECKPOINT_RESTORE),
//          which leaves them in their queue
// Image    "ipcns-msg-N": an entry, then for each message a record and its bytes, padded to 8
// Restore  by the tree's root, so that messages are charged to the container
// Lost     the creator's ids, who sent and received last, and when
// Source   msgget(2), msgop(2), msgctl(2), svipc(7); tested on 6.18
#include <sys/msg.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <span>
#include <utility>

#include "engine/ipc/ipc_namespace.h"
#include "engine/ipc/ipc_objects.h"

namespace stasis::engine {
namespace {

// What fits into the argument room of a remote call. The kernel's default limit (msgmax) is 8 KiB.
constexpr std::size_t kMostBytes = std::size_t{64} << 10;

std::string Name(std::uint32_t id) { return "System V message queue " + std::to_string(id); }

std::size_t Padded(std::size_t bytes) { return (bytes + 7) / 8 * 8; }

Result<msqid_ds> Stat(int id) {
  msqid_ds queue = {};
  if (::msgctl(id, IPC_STAT, &queue) == 0) return queue;
  if (errno == EINVAL || errno == EIDRM) return NotFound(Name(static_cast<unsigned>(id)));
  return SyscallError(errno, "msgctl IPC_STAT");
}

struct Message {
  image::IpcMsg entry;
  std::string_view bytes;
};
struct Queue {
  image::IpcMsgEntry entry;
  std::vector<Message> messages;
};

// The messages' bytes are the reader's.
Status ReadQueues(ImageFileReader& reader, const std::string& name, std::vector<Queue>& queues) {
  while (!reader.AtEnd()) {
    Queue& queue = queues.emplace_back();
    RETURN_IF_ERROR(reader.Record(queue.entry));
    for (std::uint32_t i = 0; i < queue.entry.qnum(); ++i) {
      Message& message = queue.messages.emplace_back();
      RETURN_IF_ERROR(reader.Record(message.entry));
      const std::size_t size = message.entry.msize();
      if (size > kMostBytes) return Unimplemented(name + ": a message of more than 64 KiB");
      ASSIGN_OR_RETURN(message.bytes, reader.Raw(Padded(size)));
      if (message.bytes.size() != Padded(size)) return DataLoss(name + " ends within a message");
      message.bytes = message.bytes.substr(0, size);
    }
  }
  return OkStatus();
}

Status Send(RemoteSyscalls& remote, std::uint32_t id, const Message& message) {
  std::vector<std::byte> buffer(sizeof(std::uint64_t) + message.bytes.size());
  const std::uint64_t type = message.entry.mtype();
  std::memcpy(buffer.data(), &type, sizeof(type));
  std::memcpy(buffer.data() + sizeof(type), message.bytes.data(), message.bytes.size());
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.Put(std::span<const std::byte>(buffer)));
  return remote.Call("msgsnd", SYS_msgsnd, id, at, message.bytes.size(), IPC_NOWAIT).status();
}

Status Change(pid_t pid, std::uint32_t id, const std::function<Status(msqid_ds&)>& change) {
  return InIpcNamespace(pid, [&]() -> Status {
    ASSIGN_OR_RETURN(msqid_ds queue, Stat(static_cast<int>(id)));
    RETURN_IF_ERROR(change(queue));
    if (::msgctl(static_cast<int>(id), IPC_SET, &queue) == 0) return OkStatus();
    return SyscallError(errno, Name(id) + ": msgctl IPC_SET");
  });
}

Status Make(RestoredProcess& root, const Queue& queue) {
  RemoteSyscalls& remote = *root.remote;
  const image::IpcDescEntry& description = queue.entry.desc();
  RETURN_IF_ERROR(MakeWithId(
      root.pid, static_cast<int>(description.id()),
      {.name = Name(description.id()),
       .next_id = "msg_next_id",
       .make =
           [&] {
             return remote.Call("msgget", SYS_msgget, description.key(),
                                IPC_CREAT | IPC_EXCL | 0600);
           },
       .remove =
           [&](std::uint64_t other) {
             return remote.Call("msgctl IPC_RMID", SYS_msgctl, other, IPC_RMID, 0).status();
           }}));
  // What was in it must fit.
  RETURN_IF_ERROR(Change(root.pid, description.id(), [&](msqid_ds& made) {
    made.msg_qbytes = std::max<std::uint64_t>(made.msg_qbytes, queue.entry.qbytes());
    return OkStatus();
  }));
  for (const Message& message : queue.messages) {
    RETURN_IF_ERROR(Annotate(Send(remote, description.id(), message), Name(description.id())));
  }
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::Of(root.proc.get()));
  return Change(root.pid, description.id(), [&](msqid_ds& made) {
    made.msg_qbytes = queue.entry.qbytes();
    return SetOwner(description, ids, made.msg_perm);
  });
}

}  // namespace

Status DumpMessageQueues(const UserIds& ids, ImageFileBuilder& file) {
  ASSIGN_OR_RETURN(const std::vector<int> numbers, ListObjects("msg"));
  std::vector<char> buffer(sizeof(long) + kMostBytes);
  for (const int id : numbers) {
    const Result<msqid_ds> queue = Stat(id);
    if (queue.status().code() == StatusCode::kNotFound) continue;  // removed by another container
    RETURN_IF_ERROR(queue.status());
    image::IpcMsgEntry entry;
    *entry.mutable_desc() = DescribeObject(queue->msg_perm, id, ids);
    entry.set_qbytes(static_cast<std::uint32_t>(queue->msg_qbytes));
    std::vector<std::pair<image::IpcMsg, std::string>> messages;
    for (long number = 0;; ++number) {
      const ssize_t size = ::msgrcv(id, buffer.data(), kMostBytes, number, MSG_COPY | IPC_NOWAIT);
      if (size < 0 && errno == ENOMSG) break;
      if (size < 0 && errno == E2BIG) {
        return Unimplemented(Name(entry.desc().id()) + " has a message of more than 64 KiB");
      }
      if (size < 0) return SyscallError(errno, Name(entry.desc().id()) + ": msgrcv MSG_COPY");
      auto& [message, bytes] = messages.emplace_back();
      long type = 0;
      std::memcpy(&type, buffer.data(), sizeof(type));
      message.set_mtype(static_cast<std::uint64_t>(type));
      message.set_msize(static_cast<std::uint32_t>(size));
      bytes.assign(buffer.data() + sizeof(type), static_cast<std::size_t>(size));
      bytes.resize(Padded(bytes.size()));
    }
    entry.set_qnum(static_cast<std::uint32_t>(messages.size()));
    RETURN_IF_ERROR(file.Add(entry));
    for (const auto& [message, bytes] : messages) {
      RETURN_IF_ERROR(file.Add(message));
      file.AddRaw(bytes);
    }
  }
  return OkStatus();
}

Status RestoreMessageQueues(RestoredProcess& root, const ImageSource& source,
                            const std::string& name, std::vector<std::string>& notes) {
  Result<ImageFileReader> reader = ImageFileReader::Open(source, name, "ipcns-msg");
  if (reader.status().code() == StatusCode::kNotFound) return OkStatus();
  RETURN_IF_ERROR(reader.status());
  std::vector<Queue> queues;
  RETURN_IF_ERROR(ReadQueues(*reader, name, queues));
  for (const Queue& queue : queues) {
    const image::IpcDescEntry& description = queue.entry.desc();
    msqid_ds there = {};
    const Status known = InIpcNamespace(root.pid, [&]() -> Status {
      ASSIGN_OR_RETURN(there, Stat(static_cast<int>(description.id())));
      return OkStatus();
    });
    if (known.code() == StatusCode::kNotFound) {
      RETURN_IF_ERROR(Make(root, queue));
      continue;
    }
    RETURN_IF_ERROR(known);
    if (there.msg_perm.__key != static_cast<key_t>(description.key())) {
      return AlreadyExists(Name(description.id()) + " is another one here; remove it (ipcrm)");
    }
    notes.push_back(Name(description.id()) + " was there already and has the messages of now");
  }
  return OkStatus();
}

}  // namespace stasis::engine
