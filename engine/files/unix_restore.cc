// Order    1. connections, each by itself; 2. what is bound, and listens; 3. connections that wait for
//             accept(2); once every file is there, since any may be in a message: 4. queues; 5. connect
//             datagram sockets, shutdown, options
// Rule     An accepted socket has the listener's name. So a named connection is made by a listener of that
//          name, which nobody else sees (unix_name.h)
// Rule     A datagram socket that is connected takes messages from its peer alone; who connects it elsewhere
//          empties its queue
// Source   unix(7), net/unix/af_unix.c; tested on 6.18
#include "engine/files/unix_restore.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/files/description.h"
#include "engine/files/kept_files.h"
#include "engine/files/socket.h"
#include "engine/files/unix_name.h"
#include "engine/files/unix_peer.h"
#include "engine/files/unix_queue.h"

namespace stasis::engine {
namespace {

using image::FileEntry;
using image::StasisCredentials;
using image::UnixSkEntry;

std::string Key(std::uint32_t inode) { return KeptKey("unix", inode); }
// The other end of a connection, whose holder has closed it.
std::string FarKey(std::uint32_t inode) { return KeptKey("unix-far", inode); }
constexpr const char* kMade = "unix-made";
constexpr const char* kCompleted = "unix-completed";

bool IsExternal(const UnixSkEntry& entry) { return (entry.uflags() & kUnixExternal) != 0; }

const FileEntry* EntryOfInode(std::uint32_t inode, const FileRestoreContext& context) {
  if (inode == 0) return nullptr;
  for (const FileEntry& entry : context.entries()) {
    if (entry.type() == image::FD_UNIXSK && entry.has_usk() && entry.usk().ino() == inode) {
      return &entry;
    }
  }
  return nullptr;
}

// ---- binding ----

// bind(2) does not take a path that exists; a socket that was left there by the checkpoint goes.
Status RemoveStaleSocket(const std::string& path, FileRestoreContext& context) {
  const Result<UniqueFd> there = context.actor().Open(path, O_PATH | O_NOFOLLOW, 0);
  if (there.status().code() == StatusCode::kNotFound) return OkStatus();
  RETURN_IF_ERROR(there.status());
  struct stat st = {};
  if (::fstat(there->get(), &st) != 0 || !S_ISSOCK(st.st_mode)) {
    return FailedPrecondition("there is no socket at " + path + " but another file; remove it");
  }
  return context.actor().Unlink(path);
}

// Through the socket itself, not by its path, which another container on a shared volume might
// redirect.
Status RestorePermissions(int fd, const image::FilePermsEntry& permissions, const UserIds& ids) {
  ASSIGN_OR_RETURN(const UniqueFd bound, BoundFile(fd));
  RETURN_IF_ERROR(Annotate(ChangeOwner(bound.get(), permissions.uid(), permissions.gid(), ids),
                           "a unix socket"));
  const std::string path = "/proc/self/fd/" + std::to_string(bound.get());
  if (::chmod(path.c_str(), permissions.mode() & 0777) != 0) {
    return SyscallError(errno, "set the mode of a unix socket");
  }
  return OkStatus();
}

Status Bind(int fd, const UnixSkEntry& entry, FileRestoreContext& context) {
  const std::string& name = entry.name();
  if (name.empty()) return OkStatus();
  if (entry.deleted()) return BindUnseen(fd, name);
  ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(name));
  const bool path = name.front() != '\0';
  if (path && name.front() != '/') {
    return Unimplemented("the relative socket path " + NameText(name) + " cannot be restored yet");
  }
  RETURN_IF_ERROR(context.EnterMount(path ? entry.mnt_id() : -1));
  if (path) RETURN_IF_ERROR(RemoveStaleSocket(NameText(name), context));
  RETURN_IF_ERROR(Annotate(context.actor().Bind(fd, address), "bind to " + NameText(name)));
  if (!path || !entry.has_file_perms()) return OkStatus();
  return RestorePermissions(fd, entry.file_perms(), context.ids());
}

// ---- connections ----

struct Ends {
  UniqueFd one, two;
};

// A connection whose second end has the name `accepted`.
Result<Ends> NamedConnection(const UnixSkEntry& accepted, const UnixSkEntry* client,
                             FileRestoreContext& context) {
  const int type = static_cast<int>(accepted.type());
  ASSIGN_OR_RETURN(const UniqueFd listener, context.actor().Socket(AF_UNIX, type, 0));
  RETURN_IF_ERROR(BindUnseen(listener.get(), accepted.name()));
  RETURN_IF_ERROR(
      Listen(listener.get(), 1, client != nullptr ? PeerOf(*client) : nullptr, context));
  if (client != nullptr && (PeerOf(*client) == nullptr || IsRoot(*PeerOf(*client), context))) {
    context.Note("a unix socket connected to " + NameText(accepted.name()) +
                 " does not tell its peer's pid any more (SO_PEERCRED)");
  }
  Ends ends;
  ASSIGN_OR_RETURN(ends.one, context.actor().Socket(AF_UNIX, type, 0));
  if (client != nullptr && !client->name().empty()) {
    RETURN_IF_ERROR(BindUnseen(ends.one.get(), client->name()));
  }
  RETURN_IF_ERROR(
      ConnectTo(ends.one.get(), listener.get(), accepted.name(), PeerOf(accepted), context));
  ends.two.Reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!ends.two) {
    return SyscallError(errno, "accept");
  }
  return ends;
}

Result<Ends> Unnamed(const UnixSkEntry& entry, FileRestoreContext& context) {
  Ends ends;
  ASSIGN_OR_RETURN(auto pair, SocketPair(entry, context));
  std::tie(ends.one, ends.two) = std::move(pair);
  return ends;
}

// The ends of `entry` and of `other` (null: its holder has closed it).
Result<Ends> Connection(const UnixSkEntry& entry, const UnixSkEntry* other,
                        FileRestoreContext& context) {
  if (entry.type() == SOCK_DGRAM) {
    ASSIGN_OR_RETURN(Ends ends, Unnamed(entry, context));
    RETURN_IF_ERROR(Bind(ends.one.get(), entry, context));
    if (other != nullptr) RETURN_IF_ERROR(Bind(ends.two.get(), *other, context));
    return ends;
  }
  const bool is_named = !entry.name().empty();
  const bool other_named = other != nullptr && !other->name().empty();
  if (!is_named && !other_named) return Unnamed(entry, context);
  // What the root itself connected is a pair that it makes: right in all but the names.
  const StasisCredentials* const client = PeerOf(is_named ? entry : *other);
  if (client == nullptr || IsRoot(*client, context)) return Unnamed(entry, context);
  Result<Ends> named =
      is_named ? NamedConnection(entry, other, context) : NamedConnection(*other, &entry, context);
  if (!named.ok()) {
    // The name of a connection is for who asks; somebody outside may have taken an abstract one.
    context.Note("a connected unix socket has lost its name " +
                 NameText(is_named ? entry.name() : other->name()) + ": " +
                 std::string(Message(named.status())));
    return Unnamed(entry, context);
  }
  if (is_named) std::swap(named->one, named->two);
  return named;
}

bool IsConnection(const FileEntry& file, FileRestoreContext& context, const FileEntry* other) {
  const UnixSkEntry& entry = file.usk();
  if (entry.type() != SOCK_DGRAM) {
    return entry.state() == TCP_ESTABLISHED &&
           (other == nullptr || other->usk().state() != TCP_LISTEN);
  }
  // One that sends to itself is made as one that sends to any name.
  if (other != nullptr) return other != &file && other->usk().peer() == entry.ino();
  if (entry.stasis_peer_gone()) return true;
  // CRIU tells of one whose peer is gone only so.
  return entry.peer() == 0 && entry.name().empty() &&
         HasUnixQueue(file.id(), context).value_or(false);
}

Status MakeConnection(const FileEntry& file, const FileEntry* other, FileRestoreContext& context) {
  const UnixSkEntry& entry = file.usk();
  auto& kept = context.Kept();
  if (other != nullptr && IsExternal(other->usk())) {
    context.Note("a unix socket connected to " + NameText(other->usk().name()) +
                 " outside the tree finds the connection closed");
    other = nullptr;
  } else if (entry.peer() != 0 && (other == nullptr || other->usk().peer() != entry.ino() ||
                                   other->usk().type() != entry.type() ||
                                   kept.contains(Key(entry.peer())) || other == &file)) {
    return DataLoss("a unix socket whose peer is not in the images");
  }
  RETURN_IF_ERROR(context.EnterNetwork(entry.ns_id()));
  ASSIGN_OR_RETURN(Ends ends,
                   Connection(entry, other != nullptr ? &other->usk() : nullptr, context));
  kept[Key(entry.ino())] = std::move(ends.one);
  kept[other != nullptr ? Key(other->usk().ino()) : FarKey(entry.ino())] = std::move(ends.two);
  return OkStatus();
}

Status MakeSingle(const UnixSkEntry& entry, FileRestoreContext& context) {
  RETURN_IF_ERROR(context.EnterNetwork(entry.ns_id()));
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Socket(AF_UNIX, static_cast<int>(entry.type()), 0));
  RETURN_IF_ERROR(Bind(fd.get(), entry, context));
  if (entry.state() == TCP_LISTEN && entry.type() != SOCK_DGRAM) {
    RETURN_IF_ERROR(
        Annotate(Listen(fd.get(), static_cast<int>(entry.backlog()), PeerOf(entry), context),
                 NameText(entry.name())));
  }
  context.Kept()[Key(entry.ino())] = std::move(fd);
  return OkStatus();
}

// A connection of the queue of `listener`, by `inode`.
Status ConnectWaiting(const UnixSkEntry& listener, std::uint32_t inode,
                      FileRestoreContext& context) {
  const int server = KeptFd(Key(listener.ino()), context);
  const FileEntry* const client = EntryOfInode(inode, context);
  const int fd = KeptFd(Key(inode), context);
  if (client == nullptr || fd < 0 || client->usk().peer() != listener.ino() ||
      client->usk().type() != listener.type()) {
    return DataLoss("a connection that waits on " + NameText(listener.name()) +
                    " is not in the images");
  }
  const StasisCredentials* const who = PeerOf(client->usk());
  if ((who == nullptr || IsRoot(*who, context)) && !listener.deleted()) {
    ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(listener.name()));
    return context.actor().Connect(fd, address);
  }
  return ConnectTo(fd, server, listener.name(), who, context);
}

// The clients that wait on `listener`, in order.
std::vector<std::uint32_t> ClientsOf(const UnixSkEntry& listener,
                                     const FileRestoreContext& context) {
  std::vector<std::uint32_t> clients(listener.stasis_waiting().begin(),
                                     listener.stasis_waiting().end());
  for (const FileEntry& file : context.entries()) {  // CRIU does not tell the order
    const UnixSkEntry& entry = file.usk();
    if (file.type() == image::FD_UNIXSK && entry.peer() == listener.ino() &&
        std::ranges::find(clients, entry.ino()) == clients.end()) {
      clients.push_back(entry.ino());
    }
  }
  return clients;
}

bool IsOurs(const FileEntry& file, const FileRestoreContext& context) {
  return file.type() == image::FD_UNIXSK && file.has_usk() && !IsExternal(file.usk()) &&
         context.ExternalStdio(ObjectLink("socket", file.usk().ino())) < 0;
}

Status CheckEntry(const UnixSkEntry& entry) {
  if (entry.type() == SOCK_STREAM || entry.type() == SOCK_DGRAM || entry.type() == SOCK_SEQPACKET) {
    return OkStatus();
  }
  return DataLoss("a unix socket of type " + std::to_string(entry.type()));
}

Status MakeAll(FileRestoreContext& context) {
  if (!context.Kept().try_emplace(kMade).second) return OkStatus();
  for (const FileEntry& file : context.entries()) {
    if (!IsOurs(file, context)) continue;
    RETURN_IF_ERROR(CheckEntry(file.usk()));
    const FileEntry* const other = EntryOfInode(file.usk().peer(), context);
    if (context.Kept().contains(Key(file.usk().ino())) || !IsConnection(file, context, other)) {
      continue;
    }
    RETURN_IF_ERROR(MakeConnection(file, other, context));
  }
  for (const FileEntry& file : context.entries()) {
    if (!IsOurs(file, context) || context.Kept().contains(Key(file.usk().ino()))) continue;
    RETURN_IF_ERROR(MakeSingle(file.usk(), context));
  }
  for (const FileEntry& file : context.entries()) {
    if (!IsOurs(file, context) || file.usk().state() != TCP_LISTEN ||
        file.usk().type() == SOCK_DGRAM) {
      continue;
    }
    for (const std::uint32_t client : ClientsOf(file.usk(), context)) {
      RETURN_IF_ERROR(ConnectWaiting(file.usk(), client, context));
    }
  }
  return OkStatus();
}

// ---- once all is there ----

// Sends to `file`, a bound datagram socket that no one is connected to yet, as anybody.
class Senders {
 public:
  Senders(const FileEntry& file, FileRestoreContext& context) : file_(file), context_(context) {}

  Result<UnixSender> Of(const std::string& name) {
    UnixSender sender;
    const int fd = KeptFd(Key(file_.usk().ino()), context_);
    if (!reach_) {
      ASSIGN_OR_RETURN(reach_, ReachOf(fd, file_.usk().name()));
    }
    sender.address = reach_->address;
    ASSIGN_OR_RETURN(sender.fd, Named(name));
    return sender;
  }

 private:
  // One of the tree that has the name, or one made for it, as of those that are gone.
  Result<int> Named(const std::string& name) {
    for (const FileEntry& file : context_.entries()) {
      const UnixSkEntry& entry = file.usk();
      if (name.empty() || !IsOurs(file, context_) || entry.type() != SOCK_DGRAM ||
          entry.name() != name ||
          (name.starts_with('\0') && entry.ns_id() != file_.usk().ns_id())) {
        continue;
      }
      return KeptFd(Key(entry.ino()), context_);
    }
    const auto [found, is_new] = made_.try_emplace(name);
    if (is_new) {
      RETURN_IF_ERROR(context_.EnterNetwork(file_.usk().ns_id()));
      ASSIGN_OR_RETURN(found->second, context_.actor().Socket(AF_UNIX, SOCK_DGRAM, 0));
      RETURN_IF_ERROR(context_.EnterNetwork(0));
      const Status status = name.empty() ? OkStatus() : BindUnseen(found->second.get(), name);
      if (!status.ok()) {
        context_.Note("a message that waits has lost the name of its sender " + NameText(name) +
                      ": " + std::string(Message(status)));
      }
    }
    return found->second.get();
  }

  const FileEntry& file_;
  FileRestoreContext& context_;
  std::optional<Reach> reach_;
  std::map<std::string, UniqueFd> made_;
};

Status FillQueue(const FileEntry& file, FileRestoreContext& context) {
  const UnixSkEntry& entry = file.usk();
  const int far = KeptFd(FarKey(entry.ino()), context);
  const FileEntry* const other = EntryOfInode(entry.peer(), context);
  if (far >= 0 || (other != nullptr && IsConnection(file, context, other))) {
    const int peer = far >= 0 ? far : KeptFd(Key(entry.peer()), context);
    bool is_named = far < 0 || entry.type() != SOCK_DGRAM;
    return RestoreUnixQueue(
        file.id(),
        [&](const std::string& name) -> Result<UnixSender> {
          if (!std::exchange(is_named, true) && !name.empty()) {
            (void)BindUnseen(peer, name);  // else nameless, as many are
          }
          return UnixSender{.fd = peer, .address = {}};
        },
        context);
  }
  if (entry.type() != SOCK_DGRAM || entry.name().empty()) return OkStatus();
  Senders senders(file, context);
  return RestoreUnixQueue(
      file.id(), [&](const std::string& name) { return senders.Of(name); }, context);
}

// A datagram socket that sends to one outside the tree. When that is not there, the program sees what
// it would have seen had the other side gone: syslog(3) connects again by itself.
Status ConnectOutside(int fd, const UnixSkEntry& peer, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(peer.name()));
  const Status status = context.actor().Connect(fd, address);
  const int error = ErrnoOf(status);
  if (error == ENOENT || error == ECONNREFUSED || error == EACCES || error == EPROTOTYPE) {
    context.Note("a unix socket is not connected to " + NameText(peer.name()) +
                 " any more: " + std::strerror(error));
    return OkStatus();
  }
  return Annotate(status, "connect to " + NameText(peer.name()));
}

// A datagram socket that sends to a bound one.
Status ConnectDatagrams(const FileEntry& file, FileRestoreContext& context) {
  const UnixSkEntry& entry = file.usk();
  if (entry.type() != SOCK_DGRAM || entry.peer() == 0) return OkStatus();
  const FileEntry* const other = EntryOfInode(entry.peer(), context);
  if (other != nullptr && IsConnection(file, context, other)) return OkStatus();
  if (other == nullptr || other->usk().name().empty() || other->usk().type() != SOCK_DGRAM) {
    return DataLoss("a unix socket whose peer is not in the images");
  }
  const int fd = KeptFd(Key(entry.ino()), context);
  if (IsExternal(other->usk())) return ConnectOutside(fd, other->usk(), context);
  return ConnectTo(fd, KeptFd(Key(entry.peer()), context), other->usk().name(), nullptr, context);
}

// One that is connected elsewhere takes no connection any more, so those that connect to it come before it;
// it itself may be connected to itself.
Status ConnectAll(FileRestoreContext& context) {
  std::map<std::uint32_t, const FileEntry*> pending;
  std::map<std::uint32_t, std::size_t> awaited;  // how many are to connect to it
  for (const FileEntry& file : context.entries()) {
    const UnixSkEntry& entry = file.usk();
    if (!IsOurs(file, context) || entry.type() != SOCK_DGRAM || entry.peer() == 0) continue;
    const FileEntry* const other = EntryOfInode(entry.peer(), context);
    if (other != nullptr && IsConnection(file, context, other)) continue;
    const bool to_itself = entry.peer() == entry.ino();
    if (pending.emplace(entry.ino(), &file).second && !to_itself) ++awaited[entry.peer()];
  }
  std::vector<std::uint32_t> ready;
  for (const auto& [inode, file] : pending) {
    if (!awaited.contains(inode)) ready.push_back(inode);
  }
  while (!ready.empty()) {
    const FileEntry& file = *pending.at(ready.back());
    pending.erase(ready.back());
    ready.pop_back();
    RETURN_IF_ERROR(ConnectDatagrams(file, context));
    const std::uint32_t peer = file.usk().peer();
    if (peer == file.usk().ino()) continue;
    if (--awaited[peer] == 0 && pending.contains(peer)) ready.push_back(peer);
  }
  return pending.empty() ? OkStatus() : DataLoss("unix sockets that are connected in a ring");
}

Status Shut(int fd, const UnixSkEntry& entry) {
  if (entry.shutdown() == image::SHUTDOWN_NONE) return OkStatus();
  if (::shutdown(fd, static_cast<int>(entry.shutdown()) - 1) != 0 && errno != ENOTCONN) {
    return SyscallError(errno, "shutdown");
  }
  return OkStatus();
}

}  // namespace

Result<UniqueFd> RestoreUnixSocket(const FileEntry& file, FileRestoreContext& context) {
  if (!file.has_usk()) return DataLoss("no unix socket in the entry");
  const int external = context.ExternalStdio(ObjectLink("socket", file.usk().ino()));
  if (external >= 0) return Duplicate(external);
  RETURN_IF_ERROR(MakeAll(context));
  return GiveKept(Key(file.usk().ino()), file.id(), context);
}

Status CompleteUnixSockets(FileRestoreContext& context) {
  if (!context.Kept().contains(kMade)) return OkStatus();
  if (!context.Kept().try_emplace(kCompleted).second) return OkStatus();
  const auto for_each = [&](auto step) -> Status {
    for (const FileEntry& file : context.entries()) {
      if (!IsOurs(file, context)) continue;
      RETURN_IF_ERROR(Annotate(step(file), "file " + std::to_string(file.id())));
    }
    return OkStatus();
  };
  RETURN_IF_ERROR(for_each([&](const FileEntry& file) { return FillQueue(file, context); }));
  RETURN_IF_ERROR(ConnectAll(context));
  return for_each([&](const FileEntry& file) -> Status {
    const int fd = KeptFd(Key(file.usk().ino()), context);
    RETURN_IF_ERROR(Shut(fd, file.usk()));
    RETURN_IF_ERROR(RestoreSocketOptions(fd, file.usk().opts()));
    return SetStatusFlags(fd, file.usk().flags());
  });
}

}  // namespace stasis::engine
