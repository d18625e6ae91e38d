// Rule    socketpair(2) and connect(2) note the caller as the peer of the other side, listen(2) as that of
//         those who connect (SO_PEERCRED): its pid, effective uid and gid. So a process with these does it,
//         which ends at once: a pid stays noted after its process
// Source  unix(7) SO_PEERCRED, net/unix/af_unix.c init_peercred; tested on 6.18
#include "engine/files/unix_peer.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <string>

#include "engine/files/unix_name.h"

namespace stasis::engine {
namespace {

using image::StasisCredentials;
using image::UnixSkEntry;

// In the child of AsProcess(): takes the ids, without which the noted credentials would be ours.
int BecomeOwner(std::uint32_t user, std::uint32_t group) {
  if (::syscall(SYS_setresgid, group, group, group) != 0) return errno;
  if (::syscall(SYS_setresuid, user, user, user) != 0) return errno;
  return 0;
}

// Runs `step` with the pid and ids of `who`. False when that cannot be, which is noted: the caller does it
// in the usual way then.
Result<bool> As(const StasisCredentials* who, FileRestoreContext& context,
                const std::function<int()>& step) {
  if (who == nullptr || who->pid() == 0 || IsRoot(*who, context)) return false;
  ASSIGN_OR_RETURN(const std::uint32_t user, context.ids().users.ToOutside(who->uid()));
  ASSIGN_OR_RETURN(const std::uint32_t group, context.ids().groups.ToOutside(who->gid()));
  const Status status = context.actor().AsProcess(static_cast<pid_t>(who->pid()), [&] {
    const int error = BecomeOwner(user, group);
    return error != 0 ? error : step();
  });
  if (status.ok()) return true;
  context.Note("a unix socket tells another peer than pid " + std::to_string(who->pid()) +
               " (SO_PEERCRED): " + std::string(Message(status)));
  return false;
}

int ErrnoOr0(int result) { return result == 0 ? 0 : errno; }

}  // namespace

const StasisCredentials* PeerOf(const UnixSkEntry& entry) {
  return entry.has_stasis_peer() ? &entry.stasis_peer() : nullptr;
}

bool IsRoot(const StasisCredentials& who, FileRestoreContext& context) {
  return static_cast<pid_t>(who.pid()) == context.actor().Pids().first;
}

Result<std::pair<UniqueFd, UniqueFd>> SocketPair(const UnixSkEntry& entry,
                                                 FileRestoreContext& context) {
  const int type = static_cast<int>(entry.type());
  void* const shared =
      ::mmap(nullptr, sizeof(int[2]), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return SyscallError(errno, "mmap");
  int* const ends = static_cast<int*>(shared);
  const Result<bool> made = As(PeerOf(entry), context, [&] {
    return ErrnoOr0(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends));
  });
  UniqueFd one(made.value_or(false) ? ends[0] : -1), two(one ? ends[1] : -1);
  ::munmap(shared, sizeof(int[2]));
  RETURN_IF_ERROR(made.status());
  if (one) return std::pair(std::move(one), std::move(two));
  return context.actor().SocketPair(AF_UNIX, type, 0);
}

Status Listen(int fd, int backlog, const StasisCredentials* who, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const bool done,
                   As(who, context, [&] { return ErrnoOr0(::listen(fd, backlog)); }));
  if (!done && ::listen(fd, backlog) != 0) {
    return SyscallError(errno, "listen");
  }
  return OkStatus();
}

Status ConnectTo(int fd, int peer, const std::string& name, const StasisCredentials* who,
                 FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const Reach reach, ReachOf(peer, name));
  const auto* const address = reinterpret_cast<const sockaddr*>(reach.address.data());
  const auto length = static_cast<socklen_t>(reach.address.size());
  ASSIGN_OR_RETURN(const bool done,
                   As(who, context, [&] { return ErrnoOr0(::connect(fd, address, length)); }));
  if (!done && ::connect(fd, address, length) != 0) {
    return SyscallError(errno, "connect to " + NameText(name));
  }
  return OkStatus();
}

}  // namespace stasis::engine
