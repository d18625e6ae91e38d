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

  /// OK when no task has `pid`, else AlreadyExists.
  Status CheckFree(pid_t pid);
  /// The next fork or clone in the namespace gets `pid`, unless somebody else forks first: the caller
  /// compares, and tries again.
  Status MakeNext(pid_t pid);

 private:
  PidReserver() = default;
  Result<int> Ask(const std::string& line);

  pid_t helper_ = 0;
  UniqueFd requests_, answers_;
};

}  // namespace stasis::engine
