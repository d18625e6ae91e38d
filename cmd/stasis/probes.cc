#include "cmd/stasis/probes.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/sock_diag.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "engine/base/unique_fd.h"
#include "engine/files/io_uring_state.h"

namespace stasis::cli {
namespace {

// Newer than Debian 12's headers.
constexpr int kTimerCreateRestoreIds = 77;  // PR_TIMER_CREATE_RESTORE_IDS, Linux 6.16
constexpr int kTimerRestoreIdsGet = 2;
struct ScanArgument {  // struct pm_scan_arg, Linux 6.7
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgument);

/// The outcome of a system call: `works`, and the error's text where it does not.
Probe Tried(bool works) {
  Probe probe;
  probe.works = works;
  if (!works) probe.detail = std::strerror(errno);
  return probe;
}

Probe Architecture() {
  struct utsname host = {};
  ::uname(&host);
  Probe probe;
  probe.works = std::strcmp(host.machine, "x86_64") == 0;
  probe.detail = std::string(host.machine) + ", Linux " + host.release;
  return probe;
}

/// A child that waits to be killed, seized with `options`. PTRACE_O_EXITKILL ends it if we die.
Probe Seize(long options) {
  const pid_t child = ::fork();
  if (child == 0) {
    while (true) ::pause();
  }
  if (child < 0) return Tried(false);
  Probe probe = Tried(::ptrace(PTRACE_SEIZE, child, nullptr, options | PTRACE_O_EXITKILL) == 0);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, __WALL);
  return probe;
}

Probe ScanPagemap() {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) return Tried(false);
  ScanArgument argument = {};
  argument.size = sizeof(argument);
  return Tried(::ioctl(pagemap.get(), kPagemapScan, &argument) >= 0);
}

Probe CompareObjects() {
  const pid_t self = ::getpid();
  return Tried(::syscall(SYS_kcmp, self, self, KCMP_VM, 0, 0) == 0);
}

Probe OpenMapFiles() { return Tried(::access("/proc/self/map_files", R_OK | X_OK) == 0); }

Probe TakeDescriptor() {
  const UniqueFd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!self) return Tried(false);
  const UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, self.get(), self.get(), 0)));
  return Tried(static_cast<bool>(copy));
}

Probe ChoosePid() {
  const UniqueFd last(::open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC));
  return Tried(static_cast<bool>(last));
}

/// prctl(2): the size query is answered wherever the call is built in; using it needs a capability too.
Probe SetMemoryMap() {
  unsigned int size = 0;
  return Tried(::prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, &size, 0, 0) == 0);
}

Probe ResolveInRoot() {
  open_how how = {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT;
  const UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, "/", &how, sizeof(how))));
  return Tried(static_cast<bool>(fd));
}

Probe DiagnoseSockets() {
  const UniqueFd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  return Tried(static_cast<bool>(netlink));
}

Probe RestoreTimerIds() {
  return Tried(::prctl(kTimerCreateRestoreIds, kTimerRestoreIdsGet, 0, 0, 0) >= 0);
}

Probe OpenUserfaultfd() {
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)));
  if (!fd) fd.Reset(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  return Tried(static_cast<bool>(fd));
}

Probe CgroupVersion() {
  constexpr long kCgroup2Magic = 0x63677270;  // statfs(2)
  struct statfs fs = {};
  Probe probe = Tried(::statfs("/sys/fs/cgroup", &fs) == 0);
  if (probe.works) probe.detail = fs.f_type == kCgroup2Magic ? "version 2" : "version 1";
  return probe;
}

}  // namespace

std::vector<Probe> RunProbes() {
  std::vector<Probe> probes;
  const auto add = [&](const char* name, bool required, const char* consequence, Probe probe) {
    probe.name = name;
    probe.required = required;
    probe.consequence = consequence;
    probes.push_back(std::move(probe));
  };
  add("architecture", true, "only x86_64 is supported so far", Architecture());
  add("ptrace seize", true,
      "no process can be frozen; run as root, with kernel.yama.ptrace_scope below 3", Seize(0));
  add("suspend seccomp", true,
      "processes with seccomp filters cannot be handled; needs CAP_SYS_ADMIN and a kernel with "
      "CONFIG_CHECKPOINT_RESTORE",
      Seize(PTRACE_O_SUSPEND_SECCOMP));
  add("PAGEMAP_SCAN", false, "memory is found page by page, which takes longer; needs Linux 6.7",
      ScanPagemap());
  add("kcmp", true, "shared descriptors cannot be told from equal ones; needs CONFIG_KCMP",
      CompareObjects());
  add("map_files", true,
      "mapped files cannot be found again; needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
      OpenMapFiles());
  add("pidfd_getfd", true, "descriptors cannot be looked at; needs Linux 5.6", TakeDescriptor());
  add("socket diagnosis", true, "sockets cannot be dumped; needs CONFIG_UNIX_DIAG",
      DiagnoseSockets());
  add("ns_last_pid", true,
      "processes cannot get their pids back; needs CONFIG_CHECKPOINT_RESTORE and root",
      ChoosePid());
  add("PR_SET_MM_MAP", true,
      "the memory layout cannot be restored; needs CONFIG_CHECKPOINT_RESTORE", SetMemoryMap());
  add("openat2", true,
      "a container's root cannot be changed safely, so its files are not restored; needs Linux 5.6",
      ResolveInRoot());
  add("timer ids", false,
      "POSIX timers with large ids cannot be restored; small ones can. Needs Linux 6.16",
      RestoreTimerIds());
  add("userfaultfd", false, "processes are frozen while all of their memory is copied",
      OpenUserfaultfd());
  add("kernel structures", false,
      "programs with io_uring are refused; needs a kernel with BTF, not newer than is known, "
      "CAP_BPF "
      "and CAP_PERFMON",
      Tried(engine::RingReader::Create().ok()));
  add("cgroup", false, "no cgroup file system is mounted; containers have none to run in",
      CgroupVersion());
  return probes;
}

}  // namespace stasis::cli
