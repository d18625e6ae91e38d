// pidfds of a process that is dead and gone, and of threads; the last process has threads whose numbers come
// right after its own, which what stands for the dead one must not take.
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>

#include <thread>

#include "target.h"

namespace {

constexpr unsigned kOfThread = O_EXCL;  // PIDFD_THREAD, Linux 6.9

int Open(pid_t pid, unsigned flags) {
  return static_cast<int>(syscall(SYS_pidfd_open, pid, flags));
}

bool Ended(int pidfd) {
  pollfd waiting = {.fd = pidfd, .events = POLLIN, .revents = 0};
  CHECK(poll(&waiting, 1, 0) >= 0);
  return waiting.revents != 0;
}

void Report(int number_to, pid_t tid, int end_from) {
  CHECK(write(number_to, &tid, sizeof(tid)) == sizeof(tid));
  char byte = 0;
  CHECK_EQ(read(end_from, &byte, 1), 0);
}

}  // namespace

int main(int, char** argv) {
  int numbers[2], end[2];
  CHECK(pipe(numbers) == 0 && pipe(end) == 0);
  const pid_t gone = fork();
  if (gone == 0) pause();
  const int of_gone = Open(gone, 0);
  CHECK(of_gone >= 0);
  CHECK(kill(gone, SIGKILL) == 0);
  CHECK_EQ(target::ExitCode(gone), 128 + SIGKILL);
  const pid_t child = fork();
  if (child == 0) {
    close(end[1]);
    std::thread one([&] { Report(numbers[1], gettid(), end[0]); });
    std::thread two([&] { Report(numbers[1], gettid(), end[0]); });
    one.join();
    two.join();
    _exit(0);
  }
  pid_t tids[2] = {};
  for (pid_t& tid : tids) CHECK(read(numbers[0], &tid, sizeof(tid)) == sizeof(tid));
  const int of_thread = Open(tids[0], kOfThread);
  CHECK(of_thread >= 0 || errno == EINVAL);

  target::PassCheckpoint(argv[1]);

  CHECK(Ended(of_gone));
  CHECK(syscall(SYS_pidfd_send_signal, of_gone, 0, nullptr, 0) < 0 && errno == ESRCH);
  if (of_thread >= 0) {
    CHECK(!Ended(of_thread));
    CHECK(syscall(SYS_pidfd_send_signal, of_thread, 0, nullptr, 0) == 0);
  }
  close(end[1]);
  CHECK_EQ(target::ExitCode(child), 0);
  if (of_thread >= 0) CHECK(Ended(of_thread));
}
