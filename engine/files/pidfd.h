// pidfds, which a restore opens when all processes are there.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/schema/files.pb.h"

namespace stasis::engine {

/// Processes that have ended and stand in for dead ones, until their pidfds are open. Each has a pid that was
/// free: all tasks of the tree must be there before, or it takes that of one.
class DeadProcesses {
 public:
  DeadProcesses() = default;
  DeadProcesses(const DeadProcesses&) = delete;
  DeadProcesses& operator=(const DeadProcesses&) = delete;
  ~DeadProcesses() { End(); }

  /// The one that stands for what the images know as `inode`, as we see it; in the pid namespace of the
  /// process whose pidfd `member` is.
  Result<pid_t> Get(std::uint32_t inode, int member);
  /// One with `pid` there. AlreadyExists: it is taken.
  Status Make(pid_t pid, int member);
  /// They are waited for, and gone.
  void End();

 private:
  Result<pid_t> Start(pid_t wanted, int member) const;

  std::map<std::uint32_t, pid_t> pids_;  // as we see them
  std::map<pid_t, pid_t> chosen_;        // the same, by the pids that they have there
};

/// Opens a pidfd as it was. `member`: pidfd of a process of the tree. `host_pid` gives a process of the tree as we see it, 0: there is none.
Result<UniqueFd> OpenPidfd(const image::PidfdEntry& pidfd, int member,
                           const std::function<pid_t(pid_t)>& host_pid, DeadProcesses& dead);

}  // namespace stasis::engine
