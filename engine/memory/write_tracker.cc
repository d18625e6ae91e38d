// Source  userfaultfd(2), ioctl_userfaultfd(2), mm/userfaultfd.c; tested on 6.18
// Rule    A userfaultfd is for the memory of the process that made it; whoever holds the descriptor may use
//         it. Without CAP_SYS_PTRACE it must be UFFD_USER_MODE_ONLY, which does not matter to one that is
//         asynchronous: the kernel resolves its faults itself.
// Rule    Closing the last descriptor, or UFFDIO_UNREGISTER, lifts the protection of every page while the
//         whole memory is locked for writing: 50 ms for 1 GiB, in which no page fault of the process ends.
//         UFFDIO_WRITEPROTECT takes the lock for reading, and what is not protected any more is quickly
//         unregistered.
// Rule    mremap(2) and fork(2) do not take the watch with them (no UFFD_FEATURE_EVENT_*); execve(2) leaves it
//         with the old memory.
// Rule    What O_DIRECT, vmsplice(2) and the like have pinned is written without a fault: see pre_copy.cc.
#include "engine/memory/write_tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/memory/dump_areas.h"
#include "engine/tracee/foothold.h"
#include "engine/tracee/remote_syscalls.h"
#include "engine/tracee/rseq.h"

namespace stasis::engine {
namespace {

// Debian 12's headers are older.
constexpr std::uint64_t kFeatureWpAsync = 1 << 15;
constexpr std::uint64_t kUserModeOnly = 1;

constexpr std::uint64_t kPieceBytes = std::uint64_t{64} << 20;  // of memory, given back at a time

// The program's seccomp filter does not judge our calls while the thread stands still.
Status LiftSeccomp(const FrozenThread& thread) {
  if (thread.status.seccomp == 0) return OkStatus();
  constexpr std::uint64_t kOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
  if (::ptrace(PTRACE_SETOPTIONS, thread.tid(), nullptr, reinterpret_cast<void*>(kOptions)) != 0) {
    return SyscallError(errno, "ptrace SETOPTIONS SUSPEND_SECCOMP");
  }
  return OkStatus();
}

Result<UniqueFd> TakeFrom(pid_t pid, int number) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return SyscallError(errno, "pidfd_open");
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
  if (!fd) return SyscallError(errno, "pidfd_getfd");
  return fd;
}

Result<UniqueFd> MakeIn(FrozenProcess& process) {
  FrozenThread& leader = process.threads.front();
  RETURN_IF_ERROR(LiftSeccomp(leader));
  RETURN_IF_ERROR(LeaveSequence(leader.tid()));
  ASSIGN_OR_RETURN(Foothold foothold, Foothold::Take(leader.tracee));
  ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(leader.tracee, foothold.place()));
  Result<UniqueFd> fd = [&]() -> Result<UniqueFd> {
    ASSIGN_OR_RETURN(const std::uint64_t number,
                     remote.Call("userfaultfd", SYS_userfaultfd,
                                 std::uint64_t{O_CLOEXEC} | O_NONBLOCK | kUserModeOnly));
    Result<UniqueFd> taken = TakeFrom(process.pid, static_cast<int>(number));
    RETURN_IF_ERROR(remote.Call("close", SYS_close, number).status());
    return taken;
  }();
  RETURN_IF_ERROR(remote.Finish());
  RETURN_IF_ERROR(foothold.Leave());
  return fd;
}

}  // namespace

Result<WriteTracker> WriteTracker::Begin(FrozenProcess& process) {
  ASSIGN_OR_RETURN(UniqueFd fd, MakeIn(process));
  uffdio_api api = {.api = UFFD_API, .features = kFeatureWpAsync, .ioctls = 0};
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    return Unimplemented(
        "this kernel has no asynchronous userfaultfd; Linux 6.7 or later is needed");
  }
  return WriteTracker(std::move(fd));
}

void WriteTracker::Watch(const Vma& vma) {
  if (!IsAnonymous(vma) || vma.Has("ht") || vma.Has("dp")) return;
  uffdio_register area = {};
  area.range = {.start = vma.start, .len = vma.size()};
  area.mode = UFFDIO_REGISTER_MODE_WP;
  // EBUSY: the program's own userfaultfd; EINVAL: what cannot be watched, or has gone.
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &area) != 0) return;
  Append(watched_, {vma.start, vma.end});
}

void WriteTracker::HideFrom(Vma& vma) const {
  const auto overlaps = [&](const PageRange& range) {
    return range.start < vma.end && vma.start < range.end;
  };
  if (IsAnonymous(vma) && std::ranges::any_of(watched_, overlaps)) std::erase(vma.flags, "uw");
}

void WriteTracker::End() {
  // Where an area has gone the calls fail, and there is nothing to give back.
  for (const PageRange& range : watched_) {
    for (std::uint64_t at = range.start; at < range.end; at += kPieceBytes) {
      uffdio_writeprotect piece = {};
      piece.range = {.start = at, .len = std::min(kPieceBytes, range.end - at)};
      (void)::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &piece);
    }
  }
  for (const PageRange& range : watched_) {
    uffdio_range whole = {.start = range.start, .len = range.end - range.start};
    (void)::ioctl(fd_.get(), UFFDIO_UNREGISTER, &whole);
  }
  watched_.clear();
  fd_.Reset();
}

}  // namespace stasis::engine
