// Locks on files: flock(2), POSIX and open file description locks, of two processes; a lease.
#include <sys/file.h>

#include "target.h"

namespace {

struct flock Range(short type, off_t start, off_t length) {
  struct flock range = {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = start;
  range.l_len = length;
  return range;
}

// The owner of a POSIX lock that is in the way of a write lock on the bytes, or 0.
pid_t OwnerOf(int fd, off_t start, off_t length) {
  struct flock range = Range(F_WRLCK, start, length);
  CHECK(fcntl(fd, F_GETLK, &range) == 0);
  return range.l_type == F_UNLCK ? 0 : range.l_pid;
}

int Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  return fd;
}

}  // namespace

int main(int, char** argv) {
  const std::string whole = target::In(argv[1], "flock"), parts = target::In(argv[1], "posix");
  const std::string description = target::In(argv[1], "ofd");
  const int exclusive = Open(whole), ranges = Open(parts), ofd = Open(description);
  CHECK(flock(exclusive, LOCK_EX) == 0);
  struct flock own = Range(F_WRLCK, 100, 50);
  CHECK(fcntl(ranges, F_SETLK, &own) == 0);
  struct flock by_description = Range(F_RDLCK, 10, 0);
  CHECK(fcntl(ofd, F_OFD_SETLK, &by_description) == 0);
  target::Touch(target::In(argv[1], "lease"));
  const int leased = open(target::In(argv[1], "lease").c_str(), O_RDONLY | O_CLOEXEC);
  const bool has_lease = fcntl(leased, F_SETLEASE, F_RDLCK) == 0;  // not on every file system
  const pid_t child = fork();
  if (child == 0) {
    struct flock its = Range(F_RDLCK, 1000, 1);
    CHECK(fcntl(ranges, F_SETLK, &its) == 0);
    target::Touch(target::In(argv[1], "child"));
    target::WaitFor(target::In(argv[1], "end"));
    CHECK_EQ(OwnerOf(ranges, 100, 1), getppid());
    CHECK_EQ(OwnerOf(ranges, 99, 1), 0);
    CHECK_EQ(OwnerOf(ranges, 150, 100), 0);
    CHECK(flock(exclusive, LOCK_EX | LOCK_NB) == 0);  // shared with the parent, which has it
    _exit(0);
  }
  target::WaitFor(target::In(argv[1], "child"));

  target::PassCheckpoint(argv[1]);

  const int another = open(whole.c_str(), O_RDWR);
  CHECK(flock(another, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK);
  CHECK_EQ(OwnerOf(ranges, 1000, 1), child);
  CHECK_EQ(OwnerOf(ranges, 999, 1), 0);
  const int stranger = open(description.c_str(), O_RDWR);
  struct flock wanted = Range(F_WRLCK, 5000, 1);
  CHECK(fcntl(stranger, F_OFD_SETLK, &wanted) == -1 && (errno == EAGAIN || errno == EACCES));
  wanted = Range(F_WRLCK, 0, 10);
  CHECK(fcntl(stranger, F_OFD_SETLK, &wanted) == 0);
  CHECK_EQ(fcntl(leased, F_GETLEASE), has_lease ? F_RDLCK : F_UNLCK);
  const std::string pid = " WRITE " + std::to_string(getpid()) + " ";
  CHECK(target::Read("/proc/self/fdinfo/" + std::to_string(exclusive)).find(pid) !=
        std::string::npos);
  target::Touch(target::In(argv[1], "end"));
  CHECK_EQ(target::ExitCode(child), 0);
  close(exclusive);
  CHECK(flock(another, LOCK_EX | LOCK_NB) == 0);
}
