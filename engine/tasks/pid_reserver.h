// Exact process ids for a tree under restore.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {

/// Chooses the pid that the kernel gives out next in a pid namespace. A helper of ours stands in that
/// namespace meanwhile, under a pid that is none of `wanted`; the processes that fork need no right.
class PidReserver {
 public:
  /// `member` is a process of the namespace, `program` our placeholder program.
  static Result<PidReserver> Start(pid_t member, const std::string& program,
                                   std::span<const pid_t> wanted);
  PidReserver(PidReserver&&) noexcept;
  PidReserver& operator=(PidReserver&&) = delete;
  ~PidReserver();

  /// OK when no task has one of `pids`, else AlreadyExists.
  Status CheckFree(std::span<const pid_t> pids);
  Status CheckFree(pid_t pid) { return CheckFree(std::span(&pid, 1)); }
  /// The next fork or clone in the namespace gets `pid`, unless somebody else forks first: the caller
  /// compares, and tries again.
  Status MakeNext(pid_t pid);

 private:
  PidReserver() = default;
  /// The number in its next answer.
  Result<int> Hear();

  pid_t helper_ = 0;
  UniqueFd requests_, answers_;
  std::string heard_;  // of its answers, not yet taken
};

}  // namespace stasis::engine
