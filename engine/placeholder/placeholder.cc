// stasis-placeholder: a static program with three small duties.
//
//   hold                  Started by a runtime as a container's first process: waits to be turned into the
//                         restored one. It holds nothing and does nothing.
//   last-pid NS PID...    Run by the engine. Enters the pid namespace of descriptor NS as the first of the
//                         PIDs that is free, and reads numbers from its standard input: "N\n" makes N the
//                         next pid that the kernel gives out there, "?N\n" asks whether N is free. Answers
//                         "0\n" or an error number.
//   time-namespace MONOTONIC BOOTTIME [USER]
//                         Run by the engine. Makes a time namespace with these offsets in nanoseconds for its
//                         children (it has none), in the user namespace of descriptor USER, says "0\n" and ends with its
//                         standard input.
//
// Rule  /proc/sys/kernel/ns_last_pid is that of the writer's own pid namespace, and needs
//       CAP_CHECKPOINT_RESTORE there; whoever forks next, privileged or not, gets the number.
//       pid_namespaces(7), kernel/pid_namespace.c pid_ns_ctl_handler()
// Rule  setns(2) into a pid namespace holds for children only. clone3(2) set_tid gives the child a pid that
//       no image wants.
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

int Hold() {
  while (true) pause();
}

int WriteLastPid(long last) {
  const int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  char text[24];
  const int length = snprintf(text, sizeof(text), "%ld", last);
  const int error = write(fd, text, static_cast<size_t>(length)) == length ? 0 : errno;
  close(fd);
  return error;
}

bool Receives(pid_t pid) { return kill(pid, 0) == 0 || errno == EPERM; }

// The number of a process group is not given out either when its leader is gone.
bool IsUsed(pid_t pid) { return Receives(pid) || (pid > 1 && Receives(-pid)); }

int Serve() {
  char line[32];
  while (fgets(line, sizeof(line), stdin) != nullptr) {
    int error = 0;
    if (line[0] == '?') {
      error = IsUsed(static_cast<pid_t>(atol(line + 1))) ? EEXIST : 0;
    } else {
      error = WriteLastPid(atol(line) - 1);
    }
    printf("%d\n", error);
    fflush(stdout);
  }
  return 0;
}

int LastPid(int ns_fd, char** candidates, int count) {
  if (setns(ns_fd, CLONE_NEWPID) != 0) {
    perror("enter the pid namespace");
    return 1;
  }
  for (int i = 0; i < count; ++i) {
    pid_t wanted = static_cast<pid_t>(atol(candidates[i]));
    clone_args arguments = {};
    arguments.exit_signal = SIGCHLD;
    arguments.set_tid = reinterpret_cast<uint64_t>(&wanted);
    arguments.set_tid_size = 1;
    const long child = syscall(SYS_clone3, &arguments, sizeof(arguments));
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      _exit(Serve());
    }
    if (child > 0) {
      int status = 0;
      while (waitpid(static_cast<pid_t>(child), &status, 0) < 0 && errno == EINTR) {
      }
      return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    }
    if (errno != EEXIST && errno != EINVAL) break;  // EINVAL: above the namespace's pid_max
  }
  perror("clone3 with a chosen pid");
  return 1;
}

int TimeNamespace(long long monotonic, long long boottime, int user_fd) {
  if (user_fd >= 0 && setns(user_fd, CLONE_NEWUSER) != 0) {
    perror("enter the user namespace");
    return 1;
  }
  constexpr long long kSecond = 1000000000;
  constexpr int kNewTime = 0x80;  // CLONE_NEWTIME
  char text[128];
  // Whole seconds may be negative, the rest may not.
  const auto whole = [](long long time) { return time / kSecond - (time % kSecond < 0 ? 1 : 0); };
  const int length = snprintf(text, sizeof(text), "monotonic %lld %lld\nboottime %lld %lld\n",
                              whole(monotonic), monotonic - whole(monotonic) * kSecond,
                              whole(boottime), boottime - whole(boottime) * kSecond);
  const bool made = unshare(kNewTime) == 0;
  const int fd = made ? open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC) : -1;
  if (fd < 0 || write(fd, text, static_cast<size_t>(length)) != length) {
    perror("make a time namespace");
    return 1;
  }
  printf("0\n");
  fflush(stdout);
  while (getchar() != EOF) {
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "hold") == 0) return Hold();
  if (argc >= 4 && strcmp(argv[1], "last-pid") == 0) {
    return LastPid(atoi(argv[2]), argv + 3, argc - 3);
  }
  if ((argc == 4 || argc == 5) && strcmp(argv[1], "time-namespace") == 0) {
    return TimeNamespace(atoll(argv[2]), atoll(argv[3]), argc == 5 ? atoi(argv[4]) : -1);
  }
  fputs(
      "stasis-placeholder is run by stasisd and stasis: hold | last-pid NS PID... | "
      "time-namespace MONOTONIC BOOTTIME [USER]\n",
      stderr);
  return 2;
}
