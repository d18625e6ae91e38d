// Regular files and directories: offsets, flags, descriptors that share one, a deleted file.
#include <dirent.h>
#include <sys/stat.h>

#include "target.h"

int main(int, char** argv) {
  const std::string path = target::In(argv[1], "data");
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
  CHECK(file >= 0);
  CHECK_EQ(write(file, "0123456789", 10), 10);
  CHECK_EQ(lseek(file, 3, SEEK_SET), 3);
  const int twin = dup(file);                      // shares the offset
  const int other = open(path.c_str(), O_RDONLY);  // has its own
  const int log = open(target::In(argv[1], "log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  const int far = dup2(other, 500);
  const int folder = open(argv[1], O_RDONLY | O_DIRECTORY);
  const int by_path = open(path.c_str(), O_PATH);
  CHECK(twin >= 0 && other >= 0 && log >= 0 && far == 500 && folder >= 0 && by_path >= 0);
  CHECK_EQ(write(log, "one ", 4), 4);
  const std::string doomed = target::In(argv[1], "doomed");
  const int deleted = open(doomed.c_str(), O_RDWR | O_CREAT, 0600);
  CHECK_EQ(write(deleted, "unlinked content", 16), 16);
  CHECK(unlink(doomed.c_str()) == 0);

  target::PassCheckpoint(argv[1]);

  char got[32];
  CHECK_EQ(read(file, got, 2), 2);
  CHECK(memcmp(got, "34", 2) == 0);
  CHECK_EQ(lseek(twin, 0, SEEK_CUR), 5);
  CHECK_EQ(lseek(other, 0, SEEK_CUR), 0);
  CHECK_EQ(read(far, got, 1), 1);
  CHECK_EQ(lseek(other, 0, SEEK_CUR), 1);
  CHECK_EQ(fcntl(file, F_GETFD), FD_CLOEXEC);
  CHECK_EQ(fcntl(twin, F_GETFD), 0);
  CHECK_EQ(fcntl(other, F_GETFL) & O_ACCMODE, O_RDONLY);
  CHECK(fcntl(log, F_GETFL) & O_APPEND);
  CHECK_EQ(lseek(log, 0, SEEK_SET), 0);
  CHECK_EQ(write(log, "two", 3), 3);
  CHECK(target::Read(target::In(argv[1], "log")) == "one two");
  CHECK(openat(folder, "data", O_RDONLY) >= 0);
  CHECK(fcntl(by_path, F_GETFL) & O_PATH);
  struct stat status;
  CHECK(fstat(deleted, &status) == 0);
  CHECK_EQ(status.st_nlink, 0);
  CHECK_EQ(status.st_mode & 07777, 0600);
  CHECK_EQ(pread(deleted, got, sizeof(got), 0), 16);
  CHECK(memcmp(got, "unlinked content", 16) == 0);
  CHECK_EQ(lseek(deleted, 0, SEEK_CUR), 16);
  CHECK(!target::Exists(doomed));
}
