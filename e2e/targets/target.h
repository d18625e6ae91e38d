// What every target shares: it prepares a state, passes the checkpoint, and verifies the state.
//
// A target is run as `NAME FOLDER`. It makes FOLDER/ready when its state is prepared, waits for
// FOLDER/go, and exits with 0 if all is as it was. Between the two it may be dumped and restored
// any number of times; while it waits it holds nothing but what it prepared.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

/// Ends the target with a message naming the place, the condition and errno.
#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      std::fprintf(stderr, "%s:%d: %s (errno: %s)\n", __FILE__, __LINE__, #condition, \
                   std::strerror(errno));                                             \
      _exit(1);                                                                       \
    }                                                                                 \
  } while (false)

/// Ends the target unless both are equal, and prints both.
#define CHECK_EQ(got, want)                                                                      \
  do {                                                                                           \
    const auto got_value = static_cast<long long>(got);                                          \
    const auto want_value = static_cast<long long>(want);                                        \
    if (got_value != want_value) {                                                               \
      std::fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, got_value, \
                   want_value);                                                                  \
      _exit(1);                                                                                  \
    }                                                                                            \
  } while (false)

namespace target {

inline void Sleep(long milliseconds) {
  timespec left = {milliseconds / 1000, milliseconds % 1000 * 1'000'000};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
}

inline bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

/// A path in the target's own folder.
inline std::string In(const char* folder, const char* name) {
  return std::string(folder) + "/" + name;
}

inline void Touch(const std::string& path) {
  const int fd = open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
  CHECK(fd >= 0);
  close(fd);
}

inline void WaitFor(const std::string& path) {
  while (!Exists(path)) {
    Sleep(2);
  }
}

/// Says that the state is prepared and waits until it is to be verified.
inline void PassCheckpoint(const char* folder) {
  Touch(In(folder, "ready"));
  WaitFor(In(folder, "go"));
}

/// The exit code of a child, or 128 + the signal that ended it.
inline int ExitCode(pid_t child) {
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// The whole of a file, such as one under /proc.
inline std::string Read(const std::string& path) {
  std::string text;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  char buffer[4096];
  for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(got));
  }
  close(fd);
  return text;
}

}  // namespace target
