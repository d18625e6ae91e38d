// Text of /proc/PID/fdinfo/FD into structs, proc_pid_fdinfo(5). No system call is made here.
#pragma once

#include <time.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

/// What the text begins with for every kind of file.
struct Fdinfo {
  std::uint64_t pos = 0;
  std::uint32_t flags = 0;  ///< O_*, O_CLOEXEC for FD_CLOEXEC.
  int mnt_id = -1;          ///< In /proc/PID/mountinfo; mounts of the kernel's own are not there.
  std::uint64_t inode = 0;  ///< 0 before Linux 5.14, which does not show it.
};
Result<Fdinfo> ParseFdinfo(std::string_view text);

struct EventfdInfo {
  std::uint64_t counter = 0;
  std::optional<bool>
      semaphore;  ///< EFD_SEMAPHORE; unset before Linux 6.5, which does not show it.
};
Result<EventfdInfo> ParseEventfd(std::string_view text);

struct FileLock {
  /// kOther: delegations.
  enum class Kind { kPosix, kFlock, kOpenFile, kLease, kOther };
  Kind kind = Kind::kOther;
  bool write = false;
  bool breaking = false;       ///< A lease that another open(2) waits for ...
  bool stays_to_read = false;  ///< ... to become one for reading; else to go.
  std::uint64_t start = 0;
  std::uint64_t end = 0;  ///< Last byte, inclusive; kNoEnd: to the end of the file.

  static constexpr std::uint64_t kNoEnd = ~std::uint64_t{0};
};
/// The "lock:" lines. POSIX locks are those of the process whose text it is, the others those of the
/// open file description.
Result<std::vector<FileLock>> ParseLocks(std::string_view text);

struct WatchedInode {
  std::uint64_t inode = 0;
  std::uint32_t device = 0;  ///< The kernel's dev_t: major << 20 | minor.
  std::uint32_t mask = 0;    ///< IN_* or FAN_*
  std::uint32_t ignored_mask = 0;
  int handle_type = 0;
  std::string handle;  ///< struct file_handle's f_handle; empty where the file system has none.
};

struct InotifyWatch : WatchedInode {
  std::uint32_t number = 0;  ///< "wd"
};
/// In rising order of their numbers. What is watched and deleted has no line any more.
Result<std::vector<InotifyWatch>> ParseInotify(std::string_view text);

struct FanotifyMark : WatchedInode {
  std::uint32_t flags = 0;    ///< FAN_MARK_EVICTABLE and the like.
  std::optional<int> mount;   ///< "mnt_id", of the mark of a mount.
  bool whole_device = false;  ///< The mark of a file system: `device` alone.
};
struct FanotifyInfo {
  std::uint32_t flags = 0;          ///< As given to fanotify_init(2).
  std::uint32_t event_flags = 0;    ///< O_*
  std::vector<FanotifyMark> marks;  ///< The newest first.
};
Result<FanotifyInfo> ParseFanotify(std::string_view text);

/// The watched set: bit N - 1 is signal N.
Result<std::uint64_t> ParseSignalfdMask(std::string_view text);

struct TimerfdInfo {
  int clock_id = 0;
  std::uint64_t ticks = 0;          ///< Expirations that nobody has read.
  std::uint32_t settime_flags = 0;  ///< TFD_TIMER_*, as last given to timerfd_settime(2).
  timespec value = {};              ///< What remains, also with TFD_TIMER_ABSTIME; 0 is disarmed.
  timespec interval = {};
};
Result<TimerfdInfo> ParseTimerfd(std::string_view text);

struct EpollTarget {
  int fd = -1;  ///< The number at the time of EPOLL_CTL_ADD: it may be another file's by now.
  std::uint32_t events = 0;
  std::uint64_t data = 0;
  std::uint64_t pos = 0;
  std::uint64_t inode = 0;
  std::uint32_t device = 0;  ///< The kernel's dev_t: major << 20 | minor.
};
Result<std::vector<EpollTarget>> ParseEpollTargets(std::string_view text);

}  // namespace stasis::engine
