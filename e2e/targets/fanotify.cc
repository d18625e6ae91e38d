// Marks on a folder, a file that nobody has open, a mount and a file system, what is ignored, and a group that tells
// names instead of opening.
#include <sys/fanotify.h>
#include <sys/stat.h>

#include "target.h"

namespace {

// The masks of the events that wait.
unsigned long long Events(int fd) {
  alignas(fanotify_event_metadata) char buffer[4096];
  unsigned long long masks = 0;
  ssize_t size = 0;
  while ((size = read(fd, buffer, sizeof(buffer))) > 0) {
    auto* event = reinterpret_cast<fanotify_event_metadata*>(buffer);
    for (; FAN_EVENT_OK(event, size); event = FAN_EVENT_NEXT(event, size)) {
      if (event->pid == getpid()) masks |= event->mask;
      if (event->fd >= 0) close(event->fd);
    }
  }
  CHECK(errno == EAGAIN);
  return masks;
}

void Append(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  CHECK(fd >= 0);
  CHECK_EQ(write(fd, "x", 1), 1);
  close(fd);
}

// The lines of fdinfo that the kernel makes of what was asked for.
std::string Shown(int fd) {
  const std::string text = target::Read("/proc/self/fdinfo/" + std::to_string(fd));
  return text.substr(text.find("fanotify "));
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = target::In(argv[1], "watched"), file = folder + "/file",
                    quiet = folder + "/quiet", other = target::In(argv[1], "other");
  CHECK(mkdir(folder.c_str(), 0700) == 0);
  for (const std::string& path : {file, quiet, other}) target::Touch(path);
  const int fd = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE,
                               O_RDONLY | O_CLOEXEC | O_LARGEFILE);
  if (fd < 0 && errno == EPERM) {
    puts("no CAP_SYS_ADMIN");
    return 77;
  }
  CHECK(fd >= 0);
  const auto mark = [](int group, unsigned flags, unsigned long long mask,
                       const std::string& path) {
    CHECK(fanotify_mark(group, FAN_MARK_ADD | flags, mask, AT_FDCWD, path.c_str()) == 0);
  };
  mark(fd, 0, FAN_MODIFY | FAN_EVENT_ON_CHILD, folder);
  mark(fd, 0, FAN_CLOSE_WRITE, other);
  mark(fd, FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY, quiet);
  const int names = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_REPORT_DFID_NAME, O_RDONLY);
  CHECK(names >= 0);
  mark(names, 0, FAN_CREATE, folder);
  const int wide = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);
  CHECK(wide >= 0);
  mark(wide, FAN_MARK_MOUNT, FAN_OPEN_EXEC, "/proc");
  mark(wide, FAN_MARK_FILESYSTEM, FAN_OPEN_EXEC, "/dev/shm");
  const std::string shown = Shown(fd), shown_names = Shown(names), shown_wide = Shown(wide);

  target::PassCheckpoint(argv[1]);

  CHECK(Shown(fd) == shown);
  CHECK(Shown(names) == shown_names);
  CHECK(Shown(wide) == shown_wide);
  CHECK_EQ(Events(fd), 0);
  Append(quiet);
  CHECK_EQ(Events(fd), 0);
  Append(file);
  CHECK_EQ(Events(fd), FAN_MODIFY);
  Append(other);
  CHECK_EQ(Events(fd), FAN_CLOSE_WRITE);
  target::Touch(folder + "/new");
  CHECK_EQ(Events(names), FAN_CREATE);
  CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
  CHECK_EQ(fcntl(wide, F_GETFD), 0);
}
