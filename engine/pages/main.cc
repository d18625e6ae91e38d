// stasis-pages: run by a restore, loads the memory of restored processes while they run.
//
// Two processes that share one table of descriptors: one serves, the other guards it. The kernel gives zeros
// for pages that are missing once nobody holds the userfaultfd any more, so when the server dies early the
// guardian, who still holds it, kills the restored processes and lets it go when they are dead. When the
// guardian dies, the server makes another one. Only who kills both at the same instant lets a program see
// memory that is not its own.
//
// Rule    With CLONE_FILES descriptors that the server gets later (children of the program, userfaultfd(2)
//         UFFD_EVENT_FORK) are the guardian's at once, and stay open until both have ended.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/base/io.h"
#include "engine/pages/page_protocol.h"
#include "engine/pages/page_server.h"
#include "engine/proc/task.h"

namespace stasis::engine::pages {
namespace {

// What the guardian must know of the server's work, in memory that both have.
struct Shared {
  static constexpr std::uint32_t kMost = 32768;
  std::atomic<std::uint32_t> count = 0;
  std::array<int, kMost> pidfds = {};
};

pid_t Fork(std::uint64_t flags) {
  return static_cast<pid_t>(::syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
}

Result<UniqueFd> PidFd(pid_t pid) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) return SyscallError(errno, "pidfd_open " + std::to_string(pid));
  return fd;
}

void Kill(int pidfd) { ::syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0); }

pid_t PidOf(int pidfd) {
  const Result<std::string> text =
      ReadFileAt(AT_FDCWD, "/proc/self/fdinfo/" + std::to_string(pidfd));
  const std::size_t at = text.ok() ? text->find("\nPid:") : std::string::npos;
  return at == std::string::npos ? 0 : static_cast<pid_t>(std::atol(text->c_str() + at + 5));
}

std::vector<pid_t> ChildrenOf(pid_t pid) {
  std::vector<pid_t> children;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const pid_t child = static_cast<pid_t>(std::atol(entry.path().filename().c_str()));
    if (child <= 0) continue;
    const auto text = ReadFileAt(AT_FDCWD, entry.path().string() + "/stat");
    const auto stat = text.ok() ? ParseTaskStat(*text) : text.status();
    if (stat.ok() && stat->ppid == pid) children.push_back(child);
  }
  return children;
}

// A parent is stopped before its children are looked for, so that none is born after that.
void KillWithChildren(int pidfd) {
  ::syscall(SYS_pidfd_send_signal, pidfd, SIGSTOP, nullptr, 0);
  if (const pid_t pid = PidOf(pidfd); pid > 0) {
    for (const pid_t child : ChildrenOf(pid)) {
      if (const Result<UniqueFd> fd = PidFd(child); fd.ok()) KillWithChildren(fd->get());
    }
  }
  Kill(pidfd);
}

// Whether somebody still has the memory of userfaultfd `fd`: ESRCH comes before any look at the address.
bool IsNeeded(int fd) {
  uffdio_zeropage nowhere = {};
  nowhere.range = {.start = 0x7fff'ffff'd000, .len = kPageBytes};
  return ::ioctl(fd, UFFDIO_ZEROPAGE, &nowhere) == 0 || (errno != ESRCH && errno != EBADF);
}

// Who is left then waits for a page that never comes, which is better than a wrong one.
void HoldUntilDead() {
  constexpr unsigned kNapMicroseconds = 100'000;
  for (bool needed = true; needed; ::usleep(kNapMicroseconds)) {
    needed = false;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
      const std::string link = std::filesystem::read_symlink(entry.path(), error).string();
      if (link != "anon_inode:[userfaultfd]") continue;
      needed = needed || IsNeeded(static_cast<int>(std::atol(entry.path().filename().c_str())));
    }
  }
}

[[noreturn]] void Guard(pid_t server, const Shared& shared) {
  int status = 0;
  while (::waitpid(server, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) ::_exit(0);
  const std::uint32_t count = shared.count;
  for (std::uint32_t i = 0; i < count; ++i) KillWithChildren(shared.pidfds.at(i));
  HoldUntilDead();
  ::_exit(1);
}

// Returns in the server, with the guardian's pidfd; the caller becomes the guardian.
Result<UniqueFd> MakeGuardian(const Shared& shared) {
  ASSIGN_OR_RETURN(UniqueFd self, PidFd(::getpid()));
  const pid_t server = Fork(CLONE_FILES);
  if (server < 0) return SyscallError(errno, "clone the server");
  if (server > 0) Guard(server, shared);
  return self;
}

// Not for reading /proc, and not to be ended by what ends a session: the program needs us to the end.
void Harden() {
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE}) ::signal(signal, SIG_IGN);
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;  // each child of the program needs a descriptor
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (const auto score = OpenAt(AT_FDCWD, "/proc/self/oom_score_adj", O_WRONLY); score.ok()) {
    (void)WriteAll(score->get(), "-1000");  // without the right to that it stays as it is
  }
}

Status Serve(Shared& shared) {
  ASSIGN_OR_RETURN(UniqueFd guardian, MakeGuardian(shared));
  UniqueFd socket(kServerSocket);
  ::send(socket.get(), &kReady, sizeof(kReady), MSG_NOSIGNAL);
  std::vector<UniqueFd> pidfds;
  PageServer server(std::move(socket), [&](UniqueFd pidfd) -> Status {
    const std::uint32_t count = shared.count;
    if (count == Shared::kMost) return ResourceExhausted("too many processes");
    shared.pidfds.at(count) = pidfd.get();
    shared.count = count + 1;
    pidfds.push_back(std::move(pidfd));
    return OkStatus();
  });
  const Status status = server.Run(std::move(guardian), [&shared] { return MakeGuardian(shared); });
  if (!status.ok()) {
    ::openlog("stasis-pages", LOG_PID, LOG_DAEMON);
    ::syslog(LOG_ERR, "restored processes are killed, their memory cannot be loaded: %s",
             ToText(status).c_str());
  }
  // Not by return, which would close what the guardian must still hold.
  ::_exit(status.ok() ? 0 : 1);
}

int Main() {
  // The restore waits for its child, which is not to be the server.
  const pid_t child = Fork(0);
  if (child != 0) return child < 0 ? 1 : 0;
  Harden();
  void* const memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  return Serve(*new (memory) Shared).ok() ? 0 : 1;
}

}  // namespace
}  // namespace stasis::engine::pages

int main(int argc, char**) {
  if (argc == 1 && ::fcntl(stasis::engine::pages::kServerSocket, F_GETFD) >= 0) {
    return stasis::engine::pages::Main();
  }
  constexpr char kUsage[] = "stasis-pages is run by stasis\n";
  (void)!::write(2, kUsage, sizeof(kUsage) - 1);
  return 2;
}
