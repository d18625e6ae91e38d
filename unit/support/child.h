// Child processes of a test, ended with it.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <utility>

namespace stasis::testing {

/// A forked child that runs a function and exits with its result; killed and reaped by the destructor.
class Child {
 public:
  template <typename Body>
  explicit Child(Body body) : pid_(::fork()) {
    if (pid_ == 0) ::_exit(body());
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
  Child& operator=(Child&&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    (void)Wait();
  }

  pid_t pid() const { return pid_; }

  /// The wait status of the child's end.
  int Wait() {
    int status = 0;
    while (::waitpid(std::exchange(pid_, 0), &status, 0) < 0 && errno == EINTR) {
    }
    return status;
  }

  /// For a child that somebody else reaped.
  void Forget() { pid_ = 0; }

 private:
  pid_t pid_;
};

/// The state letter of a process, proc_pid_stat(5); '?' when it is gone.
inline char StateOf(pid_t pid) {
  char state = '?';
  if (FILE* file = ::fopen(("/proc/" + std::to_string(pid) + "/stat").c_str(), "re")) {
    (void)!::fscanf(file, "%*d %*s %c", &state);
    ::fclose(file);
  }
  return state;
}

/// Until the process is in that state ('S' asleep, 'D' in vfork, 'T' stopped, 'Z' ended), at most half a
/// minute: what the test then finds is what is wrong.
inline void WaitForState(pid_t pid, char state) {
  for (int look = 0; look < 30'000 && StateOf(pid) != state; ++look) ::usleep(1000);
}

/// For a child of a child: it ends with its parent, as nobody else ends it.
inline void EndWithParent() { ::prctl(PR_SET_PDEATHSIG, SIGKILL); }

/// A body for Child: waits for its end.
inline int Sleep() {
  while (true) ::pause();
}

}  // namespace stasis::testing
