// unix(7) sockets, behind the link "socket:[12]".
//
// State    type, peer, name and shutdown by sock_diag(7); options; what waits to be received
// Restore  a connection is made by socketpair(2); a bound socket is made, bound and made to listen;
//          all by the process under restore. One whose peer has closed gets a peer that closes
// Lost     the names of connected stream sockets, and SO_PEERCRED of the former peers. Connections
//          that wait in a listener's queue
// Paths    the socket's file decides, not the name given to bind(2), which may be relative or of before
//          a rename(2): a restored socket is named by the path that its file had
// Outside  a datagram socket connects again to a named peer outside the tree (/dev/log)
// Not here stream peers outside the tree, descriptors in messages: refused
// Source   unix(7), sock_diag(7), net/unix/af_unix.c; tested on 6.18
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/socket.h"
#include "engine/files/unix_diag.h"
#include "engine/files/unix_queue.h"

namespace stasis::engine {
namespace {

constexpr unsigned long kFileOfSocket =
    0x89E0;  // SIOCUNIXFILE, linux/un.h: O_PATH of the bound inode

bool Owns(const OpenFile& file) { return SocketFamily(file) == AF_UNIX; }

// "@abstract" or the path, for messages.
std::string NameText(const std::string& name) {
  if (name.empty()) return "a socket without a name";
  if (name.front() == '\0') return "@" + name.substr(1);
  return name.substr(0, name.find('\0'));
}

// ---- dump ----

bool IsInTree(std::uint32_t inode, const FileDumpContext& context) {
  return std::ranges::any_of(context.files(), [&](const OpenFile& other) {
    return S_ISSOCK(other.st.st_mode) && other.st.st_ino == inode;
  });
}

// The name of the peer as bind(2) had it; "" for none.
std::string PeerName(const OpenFile& file) {
  sockaddr_un address = {};
  socklen_t length = sizeof(address);
  const bool known =
      ::getpeername(file.borrowed.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0;
  constexpr std::size_t kHead = offsetof(sockaddr_un, sun_path);
  if (!known || length <= kHead) return "";
  return std::string(address.sun_path, std::min<std::size_t>(length, sizeof(address)) - kHead);
}

// UnixSkEntry.uflags
constexpr std::uint32_t kExternal = 1;

// A datagram socket connected to one outside the tree sends to its name, which a restore connects to.
bool HasExternalPeer(const OpenFile& file, const UnixDiag& diag, const FileDumpContext& context) {
  if (diag.type != SOCK_DGRAM || diag.peer == 0 || IsInTree(diag.peer, context)) return false;
  const std::string name = PeerName(file);
  return !name.empty() && (name.front() == '/' || name.front() == '\0');
}

// Fails for a peer that a restore cannot bring back.
Status CheckPeer(const OpenFile& file, const UnixDiag& diag, const FileDumpContext& context) {
  if (diag.peer != 0) {
    if (IsInTree(diag.peer, context) || HasExternalPeer(file, diag, context)) return OkStatus();
    return Unimplemented(NameOf(file) + ": it is connected to " + NameText(PeerName(file)) +
                         " outside the tree; close the connection, or checkpoint both together");
  }
  if (diag.type == SOCK_DGRAM || diag.state != TCP_ESTABLISHED) return OkStatus();
  ASSIGN_OR_RETURN(const short poll, PollNow(file.borrowed.get(), 0));
  if ((poll & POLLHUP) != 0) return OkStatus();  // the peer has closed
  return Unimplemented(NameOf(file) + ": its connection to " + NameText(PeerName(file)) +
                       " was not accepted yet; try again");
}

// The image's entry of a peer outside the tree, as CRIU has it.
image::FileEntry ExternalPeer(const OpenFile& file, const UnixDiag& diag,
                              FileDumpContext& context) {
  image::FileEntry result;
  result.set_type(image::FD_UNIXSK);
  result.set_id(context.NewFileId());
  image::UnixSkEntry& peer = *result.mutable_usk();
  peer.set_id(result.id());
  peer.set_ino(diag.peer);
  peer.set_type(SOCK_DGRAM);
  peer.set_state(TCP_CLOSE);
  peer.set_flags(O_RDWR);
  peer.set_uflags(kExternal);
  peer.set_backlog(0);
  peer.set_peer(0);
  peer.set_name(PeerName(file));
  image::FownEntry& owner = *peer.mutable_fown();
  owner.set_uid(0);
  owner.set_euid(0);
  owner.set_signum(0);
  owner.set_pid_type(0);
  owner.set_pid(0);
  image::SkOptsEntry& options = *peer.mutable_opts();
  options.set_so_sndbuf(0);
  options.set_so_rcvbuf(0);
  options.set_so_snd_tmo_sec(0);
  options.set_so_snd_tmo_usec(0);
  options.set_so_rcv_tmo_sec(0);
  options.set_so_rcv_tmo_usec(0);
  return result;
}

// The path of `bound`, the file of a socket, as the holder of `file` sees it.
Result<std::string> PathInRoot(const OpenFile& file, int bound) {
  ASSIGN_OR_RETURN(std::string path,
                   ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(bound)));
  ASSIGN_OR_RETURN(const std::string root,
                   ReadLinkAt(AT_FDCWD, "/proc/" + std::to_string(file.pid) + "/root"));
  const bool is_own = root.size() > 1;  // else "/"
  if (is_own && path.starts_with(root + "/")) path.erase(0, root.size());
  return path;
}

// Others connect to the path that leads to the socket's file, whatever bind(2) was given.
Status DumpBoundPath(const OpenFile& file, const std::string& name, const FileDumpContext& context,
                     image::UnixSkEntry& entry) {
  const UniqueFd bound(::ioctl(file.borrowed.get(), kFileOfSocket));
  struct stat own = {};
  if (!bound || ::fstat(bound.get(), &own) != 0) {
    return SyscallError(errno, "the file of socket " + name);
  }
  image::FilePermsEntry& permissions = *entry.mutable_file_perms();
  permissions.set_mode(own.st_mode);
  permissions.set_uid(own.st_uid);
  permissions.set_gid(own.st_gid);

  const auto leads_to = [&](const std::string& path, struct stat& there) {
    return ::fstatat(context.RootOf(file), ("." + path).c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0;
  };
  struct stat there = {};
  ASSIGN_OR_RETURN(const std::string path, PathInRoot(file, bound.get()));
  if (leads_to(path, there) && there.st_dev == own.st_dev && there.st_ino == own.st_ino) {
    if (path != name) entry.set_name(path + '\0');
    return OkStatus();
  }
  // Nobody can connect to it any more: it is enough that it has the name.
  if (name.starts_with('/') && !leads_to(name, there)) {
    entry.set_deleted(true);
    return OkStatus();
  }
  return Unimplemented(NameOf(file) + ": the socket path " + name +
                       " is deleted, and relative or another's by now; this cannot be "
                       "checkpointed yet");
}
Status DumpListener(const OpenFile& file, const UnixDiag& diag, FileDumpContext& context,
                    image::UnixSkEntry& entry) {
  entry.set_backlog(diag.send_queue);
  if (diag.receive_queue > 0) {
    context.Note(NameOf(file) + ": " + std::to_string(diag.receive_queue) +
                 " connections that wait to be accepted will be gone");
  }
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  RETURN_IF_ERROR(CheckNetworkNamespace(file));
  ASSIGN_OR_RETURN(const UnixDiag diag, AskUnixDiag(file));
  image::FileEntry result = NewEntry(file, image::FD_UNIXSK);
  image::UnixSkEntry& entry = *result.mutable_usk();
  RETURN_IF_ERROR(DumpCommon(file, context, entry));
  entry.set_ino(static_cast<std::uint32_t>(file.st.st_ino));
  entry.set_type(static_cast<std::uint32_t>(diag.type));
  entry.set_state(static_cast<std::uint32_t>(diag.state));
  entry.set_uflags(0);
  entry.set_backlog(0);
  entry.set_peer(diag.peer);
  entry.set_name(diag.name);
  if (diag.shutdown != 0) entry.set_shutdown(static_cast<image::SkShutdown>(diag.shutdown));
  ASSIGN_OR_RETURN(*entry.mutable_opts(), DumpSocketOptions(file));
  if (context.IsExternalStdio(file)) return result;

  RETURN_IF_ERROR(CheckPeer(file, diag, context));
  if (HasExternalPeer(file, diag, context)) context.AddEntry(ExternalPeer(file, diag, context));
  // An accepted socket has its listener's path, which may be gone without harm.
  const bool connection = diag.type != SOCK_DGRAM && diag.state == TCP_ESTABLISHED;
  if (!connection && !diag.name.empty() && diag.name.front() != '\0') {
    RETURN_IF_ERROR(DumpBoundPath(file, NameText(diag.name), context, entry));
  }
  if (entry.deleted() && diag.receive_queue > 0) {
    context.Note(NameOf(file) + ": what waits on it will be gone, since its path is deleted");
  } else if (diag.state == TCP_LISTEN) {
    RETURN_IF_ERROR(DumpListener(file, diag, context, entry));
  } else if (diag.receive_queue > 0 || diag.type == SOCK_DGRAM) {
    RETURN_IF_ERROR(DumpUnixQueue(file, diag.type, context));
  }
  return result;
}

// ---- restore ----

std::string Key(std::uint32_t inode) { return KeptKey("unix", inode); }
std::string DoneKey(std::uint32_t inode) { return KeptKey("unix-done", inode); }

const image::FileEntry* EntryOfInode(std::uint32_t inode, const FileRestoreContext& context) {
  for (const image::FileEntry& entry : context.entries()) {
    if (entry.type() == image::FD_UNIXSK && entry.has_usk() && entry.usk().ino() == inode) {
      return &entry;
    }
  }
  return nullptr;
}

Status Shut(int fd, const image::UnixSkEntry& entry) {
  if (entry.shutdown() == image::SHUTDOWN_NONE) return OkStatus();
  if (::shutdown(fd, static_cast<int>(entry.shutdown()) - 1) != 0) {
    return SyscallError(errno, "shutdown");
  }
  return OkStatus();
}

// Both ends of a connection at once: each queue is filled through the other end, before either is
// shut.
Status MakePair(const image::FileEntry& one, FileRestoreContext& context) {
  const image::UnixSkEntry& entry = one.usk();
  ASSIGN_OR_RETURN(auto pair,
                   context.actor().SocketPair(AF_UNIX, static_cast<int>(entry.type()), 0));
  auto& [end, other_end] = pair;
  RETURN_IF_ERROR(RestoreUnixQueue(other_end.get(), one.id(), context));
  if (entry.peer() == 0) {
    // Closed by the peer; what it had sent is still there to be read.
    RETURN_IF_ERROR(Shut(end.get(), entry));
    context.Kept()[Key(entry.ino())] = std::move(end);
    return OkStatus();
  }
  const image::FileEntry* const other = EntryOfInode(entry.peer(), context);
  if (other == nullptr || other->usk().peer() != entry.ino() ||
      other->usk().type() != entry.type()) {
    return DataLoss("a unix socket whose peer is not in the images");
  }
  RETURN_IF_ERROR(RestoreUnixQueue(end.get(), other->id(), context));
  RETURN_IF_ERROR(Shut(end.get(), entry));
  RETURN_IF_ERROR(Shut(other_end.get(), other->usk()));
  context.Kept()[Key(entry.ino())] = std::move(end);
  context.Kept()[Key(entry.peer())] = std::move(other_end);
  context.Kept().try_emplace(DoneKey(entry.peer()));
  return OkStatus();
}

Result<std::vector<std::byte>> AddressOf(const image::UnixSkEntry& entry) {
  sockaddr_un address = {};
  const std::string& name = entry.name();
  if (name.size() > sizeof(address.sun_path)) return DataLoss("a unix socket with a long name");
  if (name.front() != '\0' && name.front() != '/') {
    return Unimplemented("the relative socket path " + NameText(name) + " cannot be restored yet");
  }
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, name.data(), name.size());
  const auto* const bytes = reinterpret_cast<const std::byte*>(&address);
  return std::vector<std::byte>(bytes, bytes + offsetof(sockaddr_un, sun_path) + name.size());
}

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
Status RestorePermissions(int fd, const image::FilePermsEntry& permissions) {
  const UniqueFd bound(::ioctl(fd, kFileOfSocket));
  if (!bound) {
    return SyscallError(errno, "the file of a unix socket");
  }
  const std::string path = "/proc/self/fd/" + std::to_string(bound.get());
  if (::chmod(path.c_str(), permissions.mode() & 0777) != 0) {
    return SyscallError(errno, "set the mode of a unix socket");
  }
  if (::fchownat(bound.get(), "", permissions.uid(), permissions.gid(), AT_EMPTY_PATH) != 0) {
    return SyscallError(errno, "set the owner of a unix socket");
  }
  return OkStatus();
}

Status Bind(int fd, const image::UnixSkEntry& entry, FileRestoreContext& context) {
  if (entry.name().empty()) return OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(entry));
  const std::string name = NameText(entry.name());
  const bool path = entry.name().front() == '/';
  if (path && !entry.deleted()) RETURN_IF_ERROR(RemoveStaleSocket(name, context));
  RETURN_IF_ERROR(Annotate(context.actor().Bind(fd, address), "bind to " + name));
  if (path && entry.deleted()) return context.actor().Unlink(name);
  if (!path || !entry.has_file_perms()) return OkStatus();
  return RestorePermissions(fd, entry.file_perms());
}

// The socket of `file`, made and bound, whether or not its own turn has come: others connect to it.
Result<int> BoundSocket(const image::FileEntry& file, FileRestoreContext& context) {
  const image::UnixSkEntry& entry = file.usk();
  const std::string key = Key(entry.ino());
  if (!context.Kept().contains(key)) {
    ASSIGN_OR_RETURN(UniqueFd fd,
                     context.actor().Socket(AF_UNIX, static_cast<int>(entry.type()), 0));
    RETURN_IF_ERROR(Bind(fd.get(), entry, context));
    context.Kept()[key] = std::move(fd);
  }
  return context.Kept()[key].get();
}

// What waited on a bound datagram socket is sent by a socket of ours: who sent it is lost.
Status FillDatagrams(const image::FileEntry& file, FileRestoreContext& context) {
  const image::UnixSkEntry& entry = file.usk();
  if (entry.type() != SOCK_DGRAM || entry.name().empty() || entry.deleted()) return OkStatus();
  ASSIGN_OR_RETURN(const UniqueFd sender, context.actor().Socket(AF_UNIX, SOCK_DGRAM, 0));
  ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(entry));
  RETURN_IF_ERROR(context.actor().Connect(sender.get(), address));
  return RestoreUnixQueue(sender.get(), file.id(), context);
}

// A datagram socket that sends to one outside the tree. When that is not there, the program sees what
// it would have seen had the other side gone: syslog(3) connects again by itself.
Status ConnectOutside(int fd, const image::UnixSkEntry& peer, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(peer));
  const Status status = context.actor().Connect(fd, address);
  const int error = ErrnoOf(status);
  if (error == ENOENT || error == ECONNREFUSED || error == EACCES || error == EPROTOTYPE) {
    context.Note("a unix socket is not connected to " + NameText(peer.name()) +
                 " any more: " + std::strerror(error));
    return OkStatus();
  }
  return Annotate(status, "connect to " + NameText(peer.name()));
}

// A datagram socket that sends to a bound one of the tree.
Status Connect(int fd, const image::UnixSkEntry& entry, FileRestoreContext& context) {
  if (entry.peer() == 0) return OkStatus();
  const image::FileEntry* const peer = EntryOfInode(entry.peer(), context);
  if (peer == nullptr || peer->usk().name().empty() || peer->usk().type() != SOCK_DGRAM) {
    return DataLoss("a unix socket whose peer is not in the images");
  }
  if ((peer->usk().uflags() & kExternal) != 0) return ConnectOutside(fd, peer->usk(), context);
  RETURN_IF_ERROR(BoundSocket(*peer, context).status());
  ASSIGN_OR_RETURN(const std::vector<std::byte> address, AddressOf(peer->usk()));
  return Annotate(context.actor().Connect(fd, address),
                  "connect to " + NameText(peer->usk().name()));
}

// A socket that is made for itself: listening, a datagram socket, or a fresh one.
Status MakeSingle(const image::FileEntry& file, FileRestoreContext& context) {
  const image::UnixSkEntry& entry = file.usk();
  ASSIGN_OR_RETURN(const int fd, BoundSocket(file, context));
  if (entry.state() == TCP_LISTEN && ::listen(fd, static_cast<int>(entry.backlog())) != 0) {
    return SyscallError(errno, "listen on " + NameText(entry.name()));
  }
  // In this order: a connected socket takes datagrams from its peer alone.
  RETURN_IF_ERROR(FillDatagrams(file, context));
  RETURN_IF_ERROR(Connect(fd, entry, context));
  return Shut(fd, entry);
}

bool IsPair(const image::UnixSkEntry& entry, const FileRestoreContext& context) {
  if (entry.type() != SOCK_DGRAM) return entry.state() == TCP_ESTABLISHED;
  const image::FileEntry* const peer =
      entry.peer() != 0 ? EntryOfInode(entry.peer(), context) : nullptr;
  return peer != nullptr && peer->usk().peer() == entry.ino() && entry.name().empty() &&
         peer->usk().name().empty();
}

Result<UniqueFd> Restore(const image::FileEntry& file, FileRestoreContext& context) {
  if (!file.has_usk()) return DataLoss("no unix socket in the entry");
  const image::UnixSkEntry& entry = file.usk();
  if (entry.type() != SOCK_STREAM && entry.type() != SOCK_DGRAM && entry.type() != SOCK_SEQPACKET) {
    return DataLoss("a unix socket of type " + std::to_string(entry.type()));
  }
  const int external = context.ExternalStdio(ObjectLink("socket", entry.ino()));
  if (external >= 0) return Duplicate(external);
  if (context.Kept().try_emplace(DoneKey(entry.ino())).second) {  // a mark, without a descriptor
    RETURN_IF_ERROR(IsPair(entry, context) ? MakePair(file, context) : MakeSingle(file, context));
  }
  // Kept until all are restored, for those that connect to it.
  ASSIGN_OR_RETURN(UniqueFd fd, Duplicate(context.Kept()[Key(entry.ino())].get()));
  RETURN_IF_ERROR(RestoreSocketOptions(fd.get(), entry.opts()));
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.flags()));
  return fd;
}

}  // namespace

const FileKind kUnixSocket = {.name = "unix socket",
                              .owns = Owns,
                              .dump = Dump,
                              .type = image::FD_UNIXSK,
                              .restore = Restore};

}  // namespace stasis::engine
