// unix(7) sockets, behind the link "socket:[12]".
//
// State    type, peer, name and shutdown by sock_diag(7); options; who the peer was (SO_PEERCRED); what
//          waits to be received or accepted
// Restore  unix_restore.cc
// Lost     messages of a connection that waits to be accepted are refused: nothing shows them
// Paths    the socket's file decides, not the name given to bind(2), which may be relative or of before
//          a rename(2) or link(2): a restored socket is named by the path that its file had. One whose file is
//          deleted keeps its name
// Outside  a datagram socket connects again to a named peer outside the tree (/dev/log). Other connections
//          are refused, or closed when the caller chose so (ext_unix_sk)
// Rule     A connection that waits is a socket without an inode, whose peer is the client; the listener lists
//          the clients in order, one that has closed as 0: it may have sent something (net/unix/diag.c)
// Rule     A datagram socket whose peer has closed still has it: getpeername(2) succeeds
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
#include <filesystem>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/socket.h"
#include "engine/files/unix_diag.h"
#include "engine/files/unix_name.h"
#include "engine/files/unix_queue.h"
#include "engine/files/unix_restore.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) { return SocketFamily(file) == AF_UNIX; }

bool IsInTree(std::uint32_t inode, FileDumpContext& context) {
  return SocketOfTree(inode, context) != nullptr;
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

bool IsSame(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// Whether `path` leads to the same from the tree's root directory and from the one that its holder has by now: it was
// connected to before or after a chroot(2), nobody knows.
bool IsTheSameFromBothRoots(const OpenFile& file, const std::string& path,
                            const FileDumpContext& context) {
  const auto own_root =
      OpenAt(AT_FDCWD, "/proc/" + std::to_string(file.pid) + "/root", O_PATH | O_DIRECTORY);
  if (!own_root.ok()) return false;
  const auto from_own = OpenInRoot(own_root->get(), path, O_PATH);
  const auto from_tree = OpenInRoot(context.RootOf(file), path, O_PATH);
  if (!from_own.ok()) return true;
  struct stat own = {}, tree = {};
  return from_tree.ok() && ::fstat(from_own->get(), &own) == 0 &&
         ::fstat(from_tree->get(), &tree) == 0 && IsSame(own, tree);
}

// A datagram socket connected to one outside the tree sends to its name, which a restore connects to.
bool HasExternalPeer(const OpenFile& file, const UnixDiag& diag, FileDumpContext& context) {
  if (diag.type != SOCK_DGRAM || diag.peer == 0 || IsInTree(diag.peer, context)) return false;
  const std::string name = PeerName(file);
  return name.starts_with('\0') ||
         (name.starts_with('/') && IsTheSameFromBothRoots(file, NameText(name), context));
}

// A datagram socket whose peer has closed keeps it until it sends again.
bool HasGonePeer(const OpenFile& file, const UnixDiag& diag) {
  sockaddr_un address = {};
  socklen_t length = sizeof(address);
  return diag.type == SOCK_DGRAM && diag.peer == 0 &&
         ::getpeername(file.borrowed.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0;
}

// The inode of the listener of the tree that `file` waits on to be accepted; 0 for none.
Result<std::uint32_t> ListenerOf(const OpenFile& file, FileDumpContext& context) {
  for (const OpenFile& other : context.files()) {
    if (!Owns(other) ||
        SocketOption(other.borrowed.get(), SOL_SOCKET, SO_ACCEPTCONN).value_or(0) == 0) {
      continue;
    }
    ASSIGN_OR_RETURN(const UnixDiag listener, AskUnixDiag(other, context));
    if (std::ranges::find(listener.waiting, file.st.st_ino) != listener.waiting.end()) {
      return static_cast<std::uint32_t>(other.st.st_ino);
    }
  }
  return 0;
}

// The process that connected it, as far as we can tell: its holder.
image::StasisCredentials HolderOf(const OpenFile& file) {
  image::StasisCredentials holder;
  holder.set_pid(static_cast<std::uint32_t>(file.ns_pid));
  holder.set_uid(file.st.st_uid);
  holder.set_gid(file.st.st_gid);
  return holder;
}

// A connection that no accept(2) has taken: its peer has no descriptor and shows nothing that was sent.
Status DumpUnaccepted(const OpenFile& file, const UnixDiag& diag, FileDumpContext& context,
                      image::UnixSkEntry& entry) {
  const std::string text =
      NameOf(file) + ": its connection to " + NameText(PeerName(file)) + " was not accepted yet";
  if (context.options().skip_in_flight) {
    context.Note(text + "; it will be closed");
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const std::uint32_t listener, ListenerOf(file, context));
  if (listener == 0) {
    return Unimplemented(text +
                         ", outside the tree; try again, or leave it out (--skip-in-flight)");
  }
  if (diag.send_queue > 0) {
    return Unimplemented(text +
                         " and has data in it; try again, or leave it out (--skip-in-flight)");
  }
  entry.set_peer(listener);
  *entry.mutable_stasis_peer() = HolderOf(file);
  return OkStatus();
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
  peer.set_uflags(kUnixExternal);
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

// A datagram socket without a name can be sent to only by the other of its pair.
Status CheckMutual(const OpenFile& file, std::uint32_t peer, FileDumpContext& context) {
  if (const OpenFile* const other = SocketOfTree(peer, context)) {
    ASSIGN_OR_RETURN(const UnixDiag diag, AskUnixDiag(*other, context));
    if (diag.peer == file.st.st_ino) return OkStatus();
  }
  return Unimplemented(NameOf(file) + ": the other of its pair is connected to another one by now");
}

// Fails for a peer that a restore cannot bring back.
Status DumpPeer(const OpenFile& file, const UnixDiag& diag, FileDumpContext& context,
                image::UnixSkEntry& entry) {
  if (diag.peer == 0) {
    if (HasGonePeer(file, diag)) entry.set_stasis_peer_gone(true);
    if (diag.type == SOCK_DGRAM || diag.state != TCP_ESTABLISHED) return OkStatus();
    ASSIGN_OR_RETURN(const short poll, PollNow(file.borrowed.get(), 0));
    if ((poll & POLLHUP) != 0) return OkStatus();  // the peer has closed
    return DumpUnaccepted(file, diag, context, entry);
  }
  if (IsInTree(diag.peer, context)) {
    if (diag.type != SOCK_DGRAM || !PeerName(file).empty()) return OkStatus();
    return CheckMutual(file, diag.peer, context);
  }
  if (HasExternalPeer(file, diag, context)) {
    context.AddEntry(ExternalPeer(file, diag, context));
    return OkStatus();
  }
  const std::string text =
      NameOf(file) + ": it is connected to " + NameText(PeerName(file)) + " outside the tree";
  if (!context.options().ext_unix_sk) {
    return Unimplemented(text +
                         "; close the connection, checkpoint both together, or have it closed "
                         "(--ext-unix-sk)");
  }
  context.Note(text + "; it will be closed");
  entry.set_peer(0);
  if (diag.type == SOCK_DGRAM) entry.set_stasis_peer_gone(true);
  return OkStatus();
}

// Whether `path` leads to `own`; `found` is open there then.
bool LeadsTo(int root, const std::string& path, const struct stat& own, UniqueFd& found) {
  Result<UniqueFd> there = OpenInRoot(root, path, O_PATH | O_NOFOLLOW);
  struct stat st = {};
  if (!there.ok() || ::fstat(there->get(), &st) != 0 || !IsSame(st, own)) return false;
  found = *std::move(there);
  return true;
}

// A restore binds the path anew, which it cannot where something is mounted.
Status CheckPath(const OpenFile& file, int bound, const std::string& path) {
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return Unimplemented(NameOf(file) + ": the socket path " + path +
                         " is too long to be bound as a whole, which cannot be checkpointed yet");
  }
  struct statx st = {};
  if (::statx(bound, "", AT_EMPTY_PATH, STATX_TYPE, &st) != 0) {
    return SyscallError(errno, "statx " + path);
  }
  if ((st.stx_attributes & STATX_ATTR_MOUNT_ROOT) == 0) return OkStatus();
  return Unimplemented(NameOf(file) + ": the socket path " + path +
                       " is a mount point, which cannot be checkpointed yet");
}

// The path of another name of `own`, in the folder where it was bound: a program that makes its socket's path appear
// whole binds another one, links it and unlinks the first. "": none.
std::string OtherName(int root, const std::string& path, const struct stat& own) {
  constexpr int kMost = 10'000;
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  const Result<UniqueFd> place = OpenInRoot(root, folder, O_RDONLY | O_DIRECTORY);
  if (!place.ok()) return "";
  std::error_code error;
  int seen = 0;
  std::filesystem::directory_iterator entry("/proc/self/fd/" + std::to_string(place->get()), error);
  for (; !error && entry != std::filesystem::directory_iterator() && ++seen <= kMost;
       entry.increment(error)) {
    const std::string name = entry->path().filename();
    struct stat there = {};
    const bool known = ::fstatat(place->get(), name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0;
    if (known && IsSame(there, own)) return folder + name;
  }
  return "";
}

// Others connect to the path that leads to the socket's file, whatever bind(2) was given.
Status DumpBoundPath(const OpenFile& file, const std::string& name, FileDumpContext& context,
                     image::UnixSkEntry& entry) {
  ASSIGN_OR_RETURN(const UniqueFd bound, BoundFile(file.borrowed.get()));
  struct stat own = {};
  if (::fstat(bound.get(), &own) != 0) {
    return SyscallError(errno, "the file of socket " + name);
  }
  context.ids().ShowInside(own);
  image::FilePermsEntry& permissions = *entry.mutable_file_perms();
  permissions.set_mode(own.st_mode);
  permissions.set_uid(own.st_uid);
  permissions.set_gid(own.st_gid);

  ASSIGN_OR_RETURN(std::string path,
                   ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(bound.get())));
  path = context.InRoot(std::move(path));
  OpenFile place;  // the socket is on a mount of the kernel's own
  place.link = path;
  ASSIGN_OR_RETURN(place.fdinfo,
                   ReadFileAt(AT_FDCWD, "/proc/thread-self/fdinfo/" + std::to_string(bound.get())));
  const int root = context.RootOf(place);
  if (const int mount = context.OtherMountOf(place); mount >= 0) entry.set_mnt_id(mount);
  UniqueFd there;
  if (!LeadsTo(root, path, own, there) && own.st_nlink > 0) {
    path = OtherName(root, path, own);
    (void)LeadsTo(root, path, own, there);
  }
  if (there) {
    if (path != name) entry.set_name(path + '\0');
    return CheckPath(file, there.get(), path);
  }
  // Nobody can connect to it any more: it is enough that it has the name.
  entry.set_deleted(true);
  if (own.st_nlink > 0) {
    context.Note(NameOf(file) + ": its file lost the name " + name +
                 " and has others elsewhere, which will not lead to it any more");
  }
  return OkStatus();
}

Status DumpListener(const OpenFile& file, const UnixDiag& diag, FileDumpContext& context,
                    image::UnixSkEntry& entry) {
  entry.set_backlog(diag.send_queue);
  if (diag.waiting.empty()) return OkStatus();
  const std::string text = NameOf(file) + ": " + std::to_string(diag.waiting.size()) +
                           " connections wait to be accepted";
  if (context.options().skip_in_flight) {
    context.Note(text + ", which will be gone");
    return OkStatus();
  }
  for (const std::uint32_t client : diag.waiting) {
    if (client == 0 || !IsInTree(client, context)) {
      return Unimplemented(text +
                           ", and the other side of one of them is closed or outside the tree; try "
                           "again, or leave them out (--skip-in-flight)");
    }
    entry.add_stasis_waiting(client);
  }
  return OkStatus();
}

// Who made the connection, as its other side is told (SO_PEERCRED).
Status DumpPeerCredentials(const OpenFile& file, FileDumpContext& context,
                           image::UnixSkEntry& entry) {
  ASSIGN_OR_RETURN(const ucred peer,
                   SocketOption<ucred>(file.borrowed.get(), SOL_SOCKET, SO_PEERCRED));
  if (peer.pid == 0 || entry.has_stasis_peer()) return OkStatus();
  pid_t pid = context.ToNamespacePid(peer.pid);
  // A process that is gone: its number is known where ours are the tree's.
  if (pid == 0 && file.pid == file.ns_pid) pid = peer.pid;
  if (pid == 0) {
    context.Note(NameOf(file) +
                 ": the pid of its peer (SO_PEERCRED) is of a process outside the tree or "
                 "gone, which will not be told");
    return OkStatus();
  }
  image::StasisCredentials& credentials = *entry.mutable_stasis_peer();
  credentials.set_pid(static_cast<std::uint32_t>(pid));
  credentials.set_uid(context.ids().users.ToInside(peer.uid));
  credentials.set_gid(context.ids().groups.ToInside(peer.gid));
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  ASSIGN_OR_RETURN(const UnixDiag diag, AskUnixDiag(file, context));
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

  RETURN_IF_ERROR(DumpPeer(file, diag, context, entry));
  RETURN_IF_ERROR(DumpPeerCredentials(file, context, entry));
  // An accepted socket has its listener's path, which may be gone without harm.
  const bool connection = diag.type != SOCK_DGRAM && diag.state == TCP_ESTABLISHED;
  if (!connection && !diag.name.empty() && diag.name.front() != '\0') {
    RETURN_IF_ERROR(DumpBoundPath(file, NameText(diag.name), context, entry));
  }
  if (diag.state == TCP_LISTEN && diag.type != SOCK_DGRAM) {
    RETURN_IF_ERROR(DumpListener(file, diag, context, entry));
  } else {
    RETURN_IF_ERROR(DumpUnixQueue(file, context));
  }
  return result;
}

}  // namespace

const FileKind kUnixSocket = {.name = "unix socket",
                              .owns = Owns,
                              .dump = Dump,
                              .type = image::FD_UNIXSK,
                              .restore = RestoreUnixSocket,
                              .waiting = FilesInUnixQueue,
                              .complete = CompleteUnixSockets};

}  // namespace stasis::engine
