// timerfd_create(2): a timer that is read, behind the link "anon_inode:[timerfd]".
//
// State    fdinfo: clock, unread expirations, flags and interval of timerfd_settime(2), remaining
//          time
// Dump     an interval timer that has expired stands still until it is read, and shows 0 remaining;
//          timerfd_gettime(2) sets it going again as a read would (fs/timerfd.c
//          do_timerfd_gettime), and only then does it show when it is due next. Nobody can tell the
//          difference
// Restore  what remains counts from the restore on, also for TFD_TIMER_ABSTIME, as CRIU has it;
//          expirations by the ioctl TFD_IOC_SET_TICKS (Linux 3.17, CONFIG_CHECKPOINT_RESTORE).
//          CRIU does not set an expired interval timer going before it looks, so that its images have
//          0 remaining: such a timer is due one interval from now
// Not here the alarm clocks: they wake a sleeping machine and need CAP_WAKE_ALARM, which an archive
//          must not be able to borrow from us
// Source   timerfd_create(2), proc_pid_fdinfo(5); tested on 6.18
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {
namespace {

// TFD_IOC_SET_TICKS; <linux/timerfd.h> does not go together with <fcntl.h>.
constexpr unsigned long kSetTicks = _IOW('T', 0, std::uint64_t);
constexpr long kNanosecondsInSecond = 1'000'000'000;

bool IsSupportedClock(std::uint32_t clock) {
  return clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME;
}

bool Owns(const OpenFile& file) { return file.link == "anon_inode:[timerfd]"; }

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  if (itimerspec ignored; ::timerfd_gettime(fd, &ignored) != 0) {
    return SyscallError(errno, "timerfd_gettime " + NameOf(file));
  }
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/self/fdinfo/" + std::to_string(fd)));
  const Result<TimerfdInfo> info = ParseTimerfd(text);
  if (!info.ok()) return Annotate(info.status(), NameOf(file));
  const auto clock = static_cast<std::uint32_t>(info->clock_id);
  if (!IsSupportedClock(clock)) {
    return Unimplemented(NameOf(file) + ": a timer on clock " + std::to_string(clock) +
                         " cannot be checkpointed yet");
  }
  image::FileEntry entry = NewEntry(file, image::FD_TIMERFD);
  image::TimerfdEntry& timer = *entry.mutable_tfd();
  RETURN_IF_ERROR(DumpCommon(file, context, timer));
  timer.set_clockid(clock);
  timer.set_ticks(info->ticks);
  timer.set_settime_flags(info->settime_flags);
  timer.set_vsec(static_cast<std::uint64_t>(info->value.tv_sec));
  timer.set_vnsec(static_cast<std::uint64_t>(info->value.tv_nsec));
  timer.set_isec(static_cast<std::uint64_t>(info->interval.tv_sec));
  timer.set_insec(static_cast<std::uint64_t>(info->interval.tv_nsec));
  return entry;
}

Status Arm(int fd, const image::TimerfdEntry& timer) {
  itimerspec setting = {};
  setting.it_value.tv_sec = static_cast<time_t>(timer.vsec());
  setting.it_value.tv_nsec = static_cast<long>(timer.vnsec());
  setting.it_interval.tv_sec = static_cast<time_t>(timer.isec());
  setting.it_interval.tv_nsec = static_cast<long>(timer.insec());
  const int flags =
      static_cast<int>(timer.settime_flags()) & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
  bool armed = timer.vsec() != 0 || timer.vnsec() != 0;
  const bool stands_still = !armed && timer.ticks() != 0;
  if (stands_still) {
    setting.it_value = setting.it_interval;
    armed = timer.isec() != 0 || timer.insec() != 0;
  }
  if (armed && (flags & TFD_TIMER_ABSTIME) != 0) {
    timespec now = {};
    ::clock_gettime(static_cast<clockid_t>(timer.clockid()), &now);
    // The kernel checks the result; the sum of hostile seconds must only not overflow here.
    const auto seconds = static_cast<std::uint64_t>(setting.it_value.tv_sec);
    const auto nanoseconds = static_cast<std::uint64_t>(setting.it_value.tv_nsec);
    if (seconds > std::uint64_t{1} << 40 || nanoseconds >= kNanosecondsInSecond) {
      return InvalidArgument("a timer that is due in " + std::to_string(seconds) + " s");
    }
    setting.it_value.tv_sec += now.tv_sec;
    setting.it_value.tv_nsec += now.tv_nsec;
    if (setting.it_value.tv_nsec >= kNanosecondsInSecond) {
      setting.it_value.tv_nsec -= kNanosecondsInSecond;
      ++setting.it_value.tv_sec;
    }
  }
  if (::timerfd_settime(fd, flags, &setting, nullptr) != 0) {
    return SyscallError(errno, "timerfd_settime");
  }
  return OkStatus();
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext&) {
  if (!entry.has_tfd()) return DataLoss("no timerfd in the entry");
  const image::TimerfdEntry& timer = entry.tfd();
  if (!IsSupportedClock(timer.clockid())) {
    return Unimplemented("a timer on clock " + std::to_string(timer.clockid()) +
                         " cannot be restored yet");
  }
  UniqueFd fd(::timerfd_create(static_cast<clockid_t>(timer.clockid()), TFD_CLOEXEC));
  if (!fd) {
    return SyscallError(errno, "timerfd_create");
  }
  RETURN_IF_ERROR(Arm(fd.get(), timer));
  // After arming, which clears them. 0 is refused.
  if (std::uint64_t ticks = timer.ticks();
      ticks != 0 && ::ioctl(fd.get(), kSetTicks, &ticks) != 0) {
    return SyscallError(errno, "TFD_IOC_SET_TICKS");
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), timer.flags()));
  return fd;
}

}  // namespace

const FileKind kTimerfd = {
    .name = "timerfd", .owns = Owns, .dump = Dump, .type = image::FD_TIMERFD, .restore = Restore};

}  // namespace stasis::engine
