// Source  userfaultfd(2), ioctl_userfaultfd(2), mm/userfaultfd.c; tested on 6.18
// Rule    A userfaultfd is for the memory of the process that made it; whoever holds the descriptor may use
//         it. Without CAP_SYS_PTRACE it must be UFFD_USER_MODE_ONLY, which does not matter to one that is
//         asynchronous: the kernel resolves its faults itself.
// Rule    Closing the last descriptor, or UFFDIO_UNREGISTER, lifts the protection of every page while the
//         memory is locked for writing: 40 ms for 1 GiB, in which no page fault of the process ends; whether it
//         was lifted by UFFDIO_WRITEPROTECT before makes no difference. In pieces it is 2.5 ms for 64 MiB each:
//         the area is split there, and joined again with what is not watched any more before it.
// Rule    mremap(2) of an area that is split fails with EFAULT, where the program has known one area (mm/mremap.c,
//         check_prep_vma()). So an area is watched as a whole, while its process stands still; it is let go as a whole;
//         and what a program resizes meanwhile, or extends, is let go all at once when the descriptor is closed.
// Rule    Areas that hear of their end (hugetlb, System V segments) are not joined (mm/vma.c).
// Rule    An area has one userfaultfd at most (EBUSY).
#include "engine/memory/userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/tracee/fd_channel.h"
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
  return GetFd(pidfd.get(), number);
}

}  // namespace

Result<UniqueFd> MakeUserfaultfd(RemoteSyscalls& remote, pid_t pid) {
  ASSIGN_OR_RETURN(const std::uint64_t number,
                   remote.Call("userfaultfd", SYS_userfaultfd,
                               std::uint64_t{O_CLOEXEC} | O_NONBLOCK | kUserModeOnly));
  Result<UniqueFd> taken = TakeFrom(pid, static_cast<int>(number));
  RETURN_IF_ERROR(remote.Call("close", SYS_close, number).status());
  return taken;
}

Result<std::vector<UniqueFd>> MakeUserfaultfds(FrozenProcess& process, int count) {
  FrozenThread& leader = process.threads.front();
  RETURN_IF_ERROR(LiftSeccomp(leader));
  RETURN_IF_ERROR(LeaveSequence(leader.tid()));
  ASSIGN_OR_RETURN(Foothold foothold, Foothold::Take(leader.tracee));
  ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(leader.tracee, foothold.place()));
  std::vector<UniqueFd> made;
  Status status;
  while (status.ok() && made.size() < static_cast<std::size_t>(count)) {
    Result<UniqueFd> fd = MakeUserfaultfd(remote, process.pid);
    status = fd.status();
    if (fd.ok()) made.push_back(*std::move(fd));
  }
  RETURN_IF_ERROR(remote.Finish());
  RETURN_IF_ERROR(foothold.Leave());
  RETURN_IF_ERROR(status);
  return made;
}

Status StartUserfault(int fd, std::uint64_t events) {
  uffdio_api api = {.api = UFFD_API, .features = kFeatureWpAsync | events, .ioctls = 0};
  if (::ioctl(fd, UFFDIO_API, &api) == 0) return OkStatus();
  if (errno == EPERM) return SyscallError(errno, "UFFDIO_API");
  return Unimplemented("this kernel has no asynchronous userfaultfd; Linux 6.7 or later is needed");
}

bool WatchRange(int fd, const PageRange& range) {
  uffdio_register area = {};
  area.range = {.start = range.start, .len = range.end - range.start};
  area.mode = UFFDIO_REGISTER_MODE_WP;
  return ::ioctl(fd, UFFDIO_REGISTER, &area) == 0;
}

void UnwatchAreas(int fd, std::span<const PageRange> areas, const std::vector<Vma>& now) {
  const auto starts = [&](const Vma& vma) {
    return std::ranges::find(areas, vma.start, &PageRange::start) != areas.end();
  };
  const auto ends = [&](const Vma& vma) {
    return std::ranges::find(areas, vma.end, &PageRange::end) != areas.end();
  };
  for (const Vma& vma : now) {
    if (!starts(vma) || !ends(vma)) continue;
    for (std::uint64_t at = vma.start; at < vma.end; at += kPieceBytes) {
      UnwatchWhole(fd, {at, std::min(at + kPieceBytes, vma.end)});
    }
  }
}

void UnwatchWhole(int fd, const PageRange& range) {
  uffdio_range whole = {.start = range.start, .len = range.end - range.start};
  (void)::ioctl(fd, UFFDIO_UNREGISTER, &whole);
}

}  // namespace stasis::engine
