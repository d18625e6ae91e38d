// What is open, run or stood in and has no name any more: folders, FIFOs, symbolic links, devices, files in
// deleted folders, the program itself.
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "target.h"

namespace {

std::string Link(const std::string& path) {
  char text[4096];
  const ssize_t length = readlink(path.c_str(), text, sizeof(text));
  CHECK(length > 0);
  return std::string(text, static_cast<size_t>(length));
}

std::string LinkOf(int fd) { return Link("/proc/self/fd/" + std::to_string(fd)); }

struct stat Stat(int fd) {
  struct stat st = {};
  CHECK(fstat(fd, &st) == 0);
  return st;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string program = target::In(argv[1], "program");
  if (argc == 2) {  // goes on as a copy of itself, which is then deleted
    const std::string bytes = target::Read("/proc/self/exe");
    const int copy = open(program.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0700);
    CHECK_EQ(write(copy, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    CHECK(close(copy) == 0);
    char again[] = "again";
    char* const arguments[] = {argv[0], argv[1], again, nullptr};
    execv(program.c_str(), arguments);
    CHECK(false);
  }
  CHECK(unlink(program.c_str()) == 0);
  const std::string outer = target::In(argv[1], "outer"), inner = outer + "/inner";
  CHECK(mkdir(outer.c_str(), 0750) == 0 && mkdir(inner.c_str(), 0710) == 0);
  CHECK(chdir(inner.c_str()) == 0);
  const int folder = open(inner.c_str(), O_RDONLY | O_DIRECTORY);
  const int within = open("file", O_RDWR | O_CREAT, 0600);
  CHECK_EQ(write(within, "within", 6), 6);
  CHECK(symlink("nowhere", "link") == 0 && mkfifo("fifo", 0620) == 0);
  const int link = open("link", O_PATH | O_NOFOLLOW);
  const int fifo = open("fifo", O_RDWR);
  CHECK(folder >= 0 && link >= 0 && fifo >= 0);
  CHECK_EQ(write(fifo, "queued", 6), 6);
  for (const char* const name : {"file", "link", "fifo"}) CHECK(unlink(name) == 0);
  CHECK(rmdir(inner.c_str()) == 0 && rmdir(outer.c_str()) == 0);
  const std::string one = target::In(argv[1], "one"), two = target::In(argv[1], "two");
  const int first = open(one.c_str(), O_RDWR | O_CREAT, 0600);
  CHECK(::link(one.c_str(), two.c_str()) == 0);
  const int second = open(two.c_str(), O_RDWR);
  CHECK(unlink(one.c_str()) == 0 && unlink(two.c_str()) == 0);

  target::PassCheckpoint(argv[1]);

  CHECK(Link("/proc/self/exe") == program + " (deleted)");
  CHECK(Link("/proc/self/cwd") == inner + " (deleted)");
  CHECK(LinkOf(folder) == inner + " (deleted)");
  CHECK(LinkOf(within) == inner + "/file (deleted)");
  CHECK(!target::Exists(outer) && !target::Exists(program));
  CHECK_EQ(Stat(folder).st_mode, S_IFDIR | 0710);
  CHECK_EQ(Stat(folder).st_nlink, 0);
  struct stat cwd = {};
  CHECK(stat(".", &cwd) == 0);
  CHECK_EQ(Stat(folder).st_ino, cwd.st_ino);
  CHECK(open("new", O_CREAT | O_WRONLY, 0600) < 0 && errno == ENOENT);
  char text[16] = {};
  CHECK_EQ(pread(within, text, sizeof(text), 0), 6);
  CHECK(memcmp(text, "within", 6) == 0);
  CHECK(S_ISLNK(Stat(link).st_mode));
  CHECK_EQ(readlinkat(link, "", text, sizeof(text)), 7);
  CHECK(memcmp(text, "nowhere", 7) == 0);
  CHECK_EQ(Stat(fifo).st_mode, S_IFIFO | 0600);
  CHECK_EQ(read(fifo, text, sizeof(text)), 6);
  CHECK(memcmp(text, "queued", 6) == 0);
  CHECK_EQ(Stat(first).st_ino, Stat(second).st_ino);
  CHECK_EQ(Stat(first).st_nlink, 0);
  CHECK_EQ(write(first, "shared", 6), 6);
  CHECK_EQ(pread(second, text, sizeof(text), 0), 6);
}
