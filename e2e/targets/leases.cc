// Leases that another open(2) waits for: one for writing that is to go, one that is to become one for reading, one
// for reading that is to go. Their holder was told, and is not told again.
#include <signal.h>

#include "target.h"

namespace {

volatile sig_atomic_t told = 0;

struct Leased {
  std::string path;
  int fd;
};

Leased Lease(const char* folder, const char* name, int open_flags, int type) {
  Leased leased = {target::In(folder, name), -1};
  target::Touch(leased.path);
  leased.fd = open(leased.path.c_str(), open_flags | O_CLOEXEC);
  CHECK(leased.fd >= 0);
  if (fcntl(leased.fd, F_SETLEASE, type) != 0) {
    std::puts("no leases on this file system");
    _exit(77);
  }
  return leased;
}

// As one who does not wait.
void Break(const Leased& leased, int flags) {
  CHECK(open(leased.path.c_str(), flags | O_NONBLOCK | O_CLOEXEC) < 0 && errno == EWOULDBLOCK);
}

bool IsBreaking(const Leased& leased) {
  return target::Read("/proc/self/fdinfo/" + std::to_string(leased.fd)).find(" BREAKING ") !=
         std::string::npos;
}

}  // namespace

int main(int, char** argv) {
  signal(SIGIO, [](int) { told = told + 1; });
  const Leased read = Lease(argv[1], "read", O_RDONLY, F_RDLCK);
  const Leased write = Lease(argv[1], "write", O_RDWR, F_WRLCK);
  const Leased shared = Lease(argv[1], "shared", O_RDONLY, F_WRLCK);
  Break(read, O_WRONLY);
  Break(write, O_WRONLY);
  Break(shared, O_RDONLY);
  CHECK_EQ(told, 3);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(told, 3);
  for (const Leased& one : {read, write, shared}) CHECK_EQ(fcntl(one.fd, F_GETOWN), getpid());
  // Before anything asks: then the kernel looks whether their time (lease-break-time) is over.
  for (const Leased& one : {read, write, shared}) CHECK(IsBreaking(one));
  CHECK_EQ(fcntl(read.fd, F_GETLEASE), F_UNLCK);
  CHECK_EQ(fcntl(write.fd, F_GETLEASE), F_UNLCK);
  CHECK_EQ(fcntl(shared.fd, F_GETLEASE), F_RDLCK);
  CHECK(fcntl(shared.fd, F_SETLEASE, F_RDLCK) == 0);
  const int reader = open(shared.path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  CHECK(reader >= 0);
  for (const Leased& one : {read, write}) {
    CHECK(fcntl(one.fd, F_SETLEASE, F_UNLCK) == 0 || errno == EAGAIN);  // its time was over
  }
  CHECK(open(write.path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC) >= 0);
}
