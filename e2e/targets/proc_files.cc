// Files of /proc/self that two processes have open: each still shows its own process, and the memory and
// descriptors that this has now. And of a process that is dead, where the program is, too.
#include <sys/eventfd.h>

#include "target.h"

namespace {

struct Open {
  int status = open("/proc/self/status", O_RDONLY);
  int maps = open("/proc/self/maps", O_RDONLY);
  int event = eventfd(7, 0);
  int fdinfo = open(("/proc/self/fdinfo/" + std::to_string(event)).c_str(), O_RDONLY);
};

std::string ReadAt(int fd) {
  std::string text(65536, '\0');
  const ssize_t got = pread(fd, text.data(), text.size(), 0);
  CHECK(got > 0);
  text.resize(static_cast<size_t>(got));
  return text;
}

// Opens a file of a process, and its mounts, and goes into its folder, before that is gone.
int OpenOfDead(int& mounts) {
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  const std::string folder = "/proc/" + std::to_string(child);
  const int fd = open((folder + "/stat").c_str(), O_RDONLY);
  mounts = open((folder + "/mountinfo").c_str(), O_RDONLY);
  CHECK(fd >= 0 && mounts >= 0 && chdir(folder.c_str()) == 0);
  CHECK(kill(child, SIGKILL) == 0 && waitpid(child, nullptr, 0) == child);
  return fd;
}

void VerifyDead(int fd) {
  char text[64];
  CHECK(pread(fd, text, sizeof(text), 0) < 0 && errno == ESRCH);
  CHECK(getcwd(text, sizeof(text)) == nullptr && errno == ENOENT);
  CHECK(open("stat", O_RDONLY) < 0 && errno == ESRCH);
}

void Verify(const Open& files) {
  const std::string pid = "\nPid:\t" + std::to_string(getpid()) + "\n";
  CHECK(ReadAt(files.status).find(pid) != std::string::npos);
  CHECK(ReadAt(files.maps).find("/proc_files\n") != std::string::npos);
  CHECK(ReadAt(files.fdinfo).find("eventfd-count:                7\n") != std::string::npos);
}

}  // namespace

int main(int, char** argv) {
  const Open files;
  CHECK(files.status >= 0 && files.maps >= 0);
  char got[8];
  CHECK_EQ(read(files.status, got, 5), 5);
  CHECK_EQ(read(files.fdinfo, got, 6), 6);
  int mounts = -1;
  const int dead = OpenOfDead(mounts);
  VerifyDead(dead);
  const pid_t child = fork();
  if (child == 0) {
    const Open own;
    target::Touch(target::In(argv[1], "child"));
    target::WaitFor(target::In(argv[1], "go"));
    Verify(own);
    _exit(0);
  }
  target::WaitFor(target::In(argv[1], "child"));

  target::PassCheckpoint(argv[1]);

  Verify(files);
  VerifyDead(dead);
  CHECK(ReadAt(mounts).find(" / ") != std::string::npos);
  CHECK_EQ(lseek(files.status, 0, SEEK_CUR), 5);
  CHECK_EQ(lseek(files.fdinfo, 0, SEEK_CUR), 6);
  CHECK_EQ(target::ExitCode(child), 0);
}
