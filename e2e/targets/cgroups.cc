// Cgroups of the program's own: a child below the parent's, an empty one, a setting and an owner.
#include <sys/mount.h>
#include <sys/stat.h>

#include <string>

#include "target.h"

namespace {

void Write(const std::string& path, const std::string& text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  CHECK(fd >= 0 && write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  close(fd);
}

// What the line of our hierarchy says after its name.
std::string Place(const std::string& name) {
  const std::string text = target::Read("/proc/self/cgroup"), key = ":name=" + name + ":";
  const std::size_t at = text.find(key);
  CHECK(at != std::string::npos);
  return text.substr(at + key.size(), text.find('\n', at) - at - key.size());
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = argv[1], mount_point = folder + "/cgroup";
  const std::string name = "stasis-" + std::to_string(getpid());
  CHECK(mkdir(mount_point.c_str(), 0755) == 0);
  if (mount("cgroup", mount_point.c_str(), "cgroup", 0, ("none,name=" + name).c_str()) != 0) {
    target::PassCheckpoint(argv[1]);
    std::printf("cgroup hierarchies cannot be mounted here\n");
    return 77;
  }
  const std::string own = mount_point + "/own", deep = own + "/deep", empty = own + "/empty";
  for (const std::string& path : {own, deep, empty}) CHECK(mkdir(path.c_str(), 0755) == 0);
  Write(empty + "/notify_on_release", "1");
  CHECK(chown(deep.c_str(), 12, 34) == 0);
  Write(own + "/cgroup.procs", "0");
  const pid_t child = fork();
  if (child == 0) {
    Write(deep + "/cgroup.procs", "0");
    target::Touch(folder + "/moved");
    target::WaitFor(folder + "/go");
    CHECK(Place(name) == "/own/deep");
    _exit(0);
  }
  target::WaitFor(folder + "/moved");

  target::PassCheckpoint(argv[1]);

  CHECK(Place(name) == "/own");
  CHECK_EQ(target::ExitCode(child), 0);
  CHECK(target::Read(empty + "/notify_on_release") == "1\n");
  struct stat st = {};
  CHECK(stat(deep.c_str(), &st) == 0 && st.st_uid == 12 && st.st_gid == 34);
  Write(mount_point + "/cgroup.procs", "0");
  for (const std::string& path : {empty, deep, own}) CHECK(rmdir(path.c_str()) == 0);
  CHECK(umount(mount_point.c_str()) == 0);
}
