// Descriptors handed into a process and taken out of it.
#pragma once

#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {

/// Descriptor `number` of the process behind `pidfd`, as one of ours (pidfd_getfd(2)).
Result<UniqueFd> GetFd(int pidfd, int number);

/// A pair of connected sockets, one end in a process under restore, the other in ours. The only way
/// into a foreign descriptor table is SCM_RIGHTS, unix(7); the way out is pidfd_getfd(2).
///
/// Every call that takes a RemoteSyscalls uses its argument room and gives back all of it
/// (ResetArguments): what the caller had put there is gone.
class FdChannel {
 public:
  /// Makes the sockets in the process of `remote`; `pidfd` names that process and outlives the
  /// channel.
  static Result<FdChannel> Open(RemoteSyscalls& remote, int pidfd);

  FdChannel(FdChannel&&) = default;
  FdChannel& operator=(FdChannel&&) = default;

  /// Gives the process its own descriptors for `our_fds`, O_CLOEXEC, and their numbers there, in
  /// order. ResourceExhausted: its limit of open files (RLIMIT_NOFILE) is reached; the numbers that
  /// it got up to then are closed.
  Result<std::vector<int>> Send(RemoteSyscalls& remote, std::span<const int> our_fds);

  /// A descriptor of ours for the same open file description as `remote_fd` of the process.
  Result<UniqueFd> Take(int remote_fd) const;

  /// The number of the channel's own socket in the process.
  int number() const { return number_; }
  /// Gives the socket another number there, in place of what that was.
  Status MoveTo(RemoteSyscalls& remote, int number);

  /// Closes both ends. Without it only ours is closed, when the channel is destroyed.
  Status Close(RemoteSyscalls& remote);

 private:
  FdChannel(UniqueFd ours, int number, int pidfd)
      : ours_(std::move(ours)), number_(number), pidfd_(pidfd) {}

  UniqueFd ours_;
  int number_;
  int pidfd_;
};

}  // namespace stasis::engine
