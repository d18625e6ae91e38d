// Source  user_namespaces(7), credentials(7), capabilities(7), setresuid(2); tested on 6.18
// Rule    Of the three columns of uid_map the second is as the reader's user namespace has it. Ids that are in no
//         line are shown as the overflow id, 65534 unless a sysctl says otherwise.
// Rule    A file system that was mounted in a user namespace, and an idmapped mount, refuse to make a file whose owner
//         has no number there: EOVERFLOW (fsuidgid_has_mapping() in include/linux/fs.h). Sysctls of an IPC namespace
//         ask for the effective id of its root, no capability stands for it (ipc_permissions() in ipc/ipc_sysctl.c).
// Rule    The system calls change one thread; glibc's functions of that name all. From 0 to another effective id
//         the effective capabilities go, and come back by capset(2) as long as they are permitted.
#include "engine/base/user_ids.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "engine/base/io.h"

namespace stasis {
namespace {

constexpr std::uint32_t kOverflowId = 65534;  // DEFAULT_OVERFLOWUID

Status BecomeRootOf(const UserIds& ids) {
  ASSIGN_OR_RETURN(const std::uint32_t user, ids.users.ToOutside(0));
  ASSIGN_OR_RETURN(const std::uint32_t group, ids.groups.ToOutside(0));
  const __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct sets[2] = {};
  if (::syscall(SYS_capget, &header, sets) != 0) return SyscallError(errno, "capget");
  if (::syscall(SYS_setresgid, -1, group, -1) != 0) return SyscallError(errno, "setresgid");
  if (::syscall(SYS_setresuid, -1, user, -1) != 0) return SyscallError(errno, "setresuid");
  if (::syscall(SYS_capset, &header, sets) != 0) return SyscallError(errno, "capset");
  return OkStatus();
}

}  // namespace

IdMap IdMap::Of(std::vector<Extent> extents) {
  IdMap map;
  map.is_ours_ = false;
  map.extents_ = std::move(extents);
  return map;
}

Result<IdMap> IdMap::Parse(std::string_view text) {
  std::istringstream words{std::string(text)};
  std::vector<std::uint32_t> numbers;
  for (std::uint32_t number = 0; words >> number;) numbers.push_back(number);
  if (!words.eof() || numbers.size() % 3 != 0) return DataLoss("a map of ids has another form");
  std::vector<Extent> extents;
  for (std::size_t i = 0; i < numbers.size(); i += 3) {
    extents.push_back({numbers[i], numbers[i + 1], numbers[i + 2]});
  }
  return Of(std::move(extents));
}

std::uint32_t IdMap::ToInside(std::uint32_t outside) const {
  if (is_ours_) return outside;
  const auto found = std::ranges::find_if(extents_, [outside](const Extent& extent) {
    return outside >= extent.outside && outside - extent.outside < extent.count;
  });
  return found == extents_.end() ? kOverflowId : found->inside + (outside - found->outside);
}

Result<std::uint32_t> IdMap::ToOutside(std::uint32_t inside) const {
  if (is_ours_) return inside;
  const auto found = std::ranges::find_if(extents_, [inside](const Extent& extent) {
    return inside >= extent.inside && inside - extent.inside < extent.count;
  });
  if (found != extents_.end()) return found->outside + (inside - found->inside);
  return FailedPrecondition("the user namespace here has no id " + std::to_string(inside) +
                            "; give it as many ids as that of the checkpoint had");
}

Result<UserIds> UserIds::Of(int task_fd) {
  UserIds ids;
  struct stat theirs = {}, ours = {};
  if (::fstatat(task_fd, "ns/user", &theirs, 0) != 0) {
    if (errno == ENOENT) return ids;  // CONFIG_USER_NS
    return SyscallError(errno, "stat /proc/PID/ns/user");
  }
  if (::stat("/proc/thread-self/ns/user", &ours) != 0) {
    return SyscallError(errno, "stat /proc/thread-self/ns/user");
  }
  if (theirs.st_ino == ours.st_ino) return ids;
  ASSIGN_OR_RETURN(const std::string users, ReadFileAt(task_fd, "uid_map"));
  ASSIGN_OR_RETURN(ids.users, IdMap::Parse(users));
  ASSIGN_OR_RETURN(const std::string groups, ReadFileAt(task_fd, "gid_map"));
  ASSIGN_OR_RETURN(ids.groups, IdMap::Parse(groups));
  return ids;
}

Result<UserIds> UserIds::OfPid(pid_t pid) {
  ASSIGN_OR_RETURN(const UniqueFd task,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid), O_PATH | O_DIRECTORY));
  return Of(task.get());
}

void UserIds::ShowInside(struct stat& st) const {
  st.st_uid = users.ToInside(st.st_uid);
  st.st_gid = groups.ToInside(st.st_gid);
}

Status ChangeOwner(int fd, std::uint32_t user, std::uint32_t group, const UserIds& ids) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) return SyscallError(errno, "fstat");
  ids.ShowInside(st);
  if (st.st_uid == user && st.st_gid == group) return OkStatus();
  ASSIGN_OR_RETURN(const std::uint32_t owner, ids.users.ToOutside(user));
  ASSIGN_OR_RETURN(const std::uint32_t owner_group, ids.groups.ToOutside(group));
  if (::fchownat(fd, "", owner, owner_group, AT_EMPTY_PATH) != 0) {
    return SyscallError(errno, "chown");
  }
  return OkStatus();
}

Status AsRootOf(const UserIds& ids, const std::function<Status()>& step) {
  if (ids.are_ours()) return step();
  Status status;
  try {
    std::thread([&] {
      status = BecomeRootOf(ids);
      if (status.ok()) status = step();
    }).join();
  } catch (const std::system_error& error) {  // no more threads are to be had
    return SyscallError(error.code().value(), "start a thread");
  }
  return status;
}

}  // namespace stasis
