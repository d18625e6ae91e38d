// Watches of a folder, of a file in it and of a file that nobody has open: with their numbers.
#include <sys/inotify.h>
#include <sys/stat.h>

#include "target.h"

namespace {

// The next event for `watch`, which must be about `name`.
void CheckEvent(int fd, int watch, unsigned mask, const char* name) {
  alignas(inotify_event) char buffer[4096];
  CHECK(read(fd, buffer, sizeof(buffer)) > 0);
  const auto* const event = reinterpret_cast<const inotify_event*>(buffer);
  CHECK_EQ(event->wd, watch);
  CHECK_EQ(event->mask, mask);
  CHECK(strcmp(event->len > 0 ? event->name : "", name) == 0);
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = target::In(argv[1], "watched");
  CHECK(mkdir(folder.c_str(), 0700) == 0);
  const std::string file = folder + "/file", other = folder + "/other";
  target::Touch(file);
  target::Touch(other);
  const int held = open(file.c_str(), O_RDWR);
  const int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  const int gone = inotify_add_watch(fd, argv[1], IN_ALL_EVENTS);
  const int of_folder = inotify_add_watch(fd, folder.c_str(), IN_CREATE | IN_ONLYDIR);
  const int of_file = inotify_add_watch(fd, file.c_str(), IN_MODIFY);
  const int of_other = inotify_add_watch(fd, other.c_str(), IN_ATTRIB);
  CHECK(held >= 0 && gone == 1 && of_folder == 2 && of_file == 3 && of_other == 4);
  CHECK(inotify_rm_watch(fd, gone) == 0);
  CheckEvent(fd, gone, IN_IGNORED, "");

  target::PassCheckpoint(argv[1]);

  char byte;
  CHECK(read(fd, &byte, 1) == -1 && errno == EAGAIN);  // nothing of the restore's own
  CHECK_EQ(write(held, "x", 1), 1);
  CheckEvent(fd, of_file, IN_MODIFY, "");
  target::Touch(folder + "/new");
  CheckEvent(fd, of_folder, IN_CREATE, "new");
  CHECK(chmod(other.c_str(), 0600) == 0);
  CheckEvent(fd, of_other, IN_ATTRIB, "");
  CHECK(inotify_rm_watch(fd, of_other) == 0);
  CheckEvent(fd, of_other, IN_IGNORED, "");
}
