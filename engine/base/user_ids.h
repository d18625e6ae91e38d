// Users and groups of another user namespace than ours.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis {

/// Ids of one kind, as a user namespace has them ("inside") and as ours does ("outside"). One without extents that was
/// not parsed is that of our own: all ids are the same.
class IdMap {
 public:
  struct Extent {
    std::uint32_t inside = 0, outside = 0, count = 0;
  };

  /// The text of /proc/PID/uid_map or gid_map, as we read it.
  static Result<IdMap> Parse(std::string_view text);
  static IdMap Of(std::vector<Extent> extents);

  bool is_ours() const { return is_ours_; }
  const std::vector<Extent>& extents() const { return extents_; }

  /// What a process there is told of `outside`: of one that it has no number for, the overflow id.
  std::uint32_t ToInside(std::uint32_t outside) const;
  /// FailedPrecondition: the namespace has no such id. An archive's are never ours without this.
  Result<std::uint32_t> ToOutside(std::uint32_t inside) const;

 private:
  bool is_ours_ = true;
  std::vector<Extent> extents_;
};

struct UserIds {
  IdMap users, groups;

  /// Those of the process whose folder in /proc `task_fd` is.
  static Result<UserIds> Of(int task_fd);
  static Result<UserIds> OfPid(pid_t pid);

  bool are_ours() const { return users.is_ours(); }
  /// Owner and group of `st` as a process there sees them.
  void ShowInside(struct stat& st) const;
};

/// Gives what `fd` has open to the user and group that have these numbers in `ids`, if it is not theirs. FailedPrecondition:
/// there are none.
Status ChangeOwner(int fd, std::uint32_t user, std::uint32_t group, const UserIds& ids);

/// Runs `step` as the first user and group of `ids`, with our capabilities, on another thread; where they are ours, on
/// this one. What it makes is theirs: a file system of another user namespace takes no file of an owner that has no
/// number there.
Status AsRootOf(const UserIds& ids, const std::function<Status()>& step);

}  // namespace stasis
