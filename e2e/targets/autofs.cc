// A daemon that mounts what somebody looks for (autofs), and one that has ended. A container's rights do not allow it.
#include <linux/auto_fs.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <filesystem>
#include <set>

#include "target.h"

namespace {

int Mount(const std::string& place, int end) {
  CHECK(mkdir(place.c_str(), 0755) == 0);
  const std::string options = "fd=" + std::to_string(end) + ",minproto=5,maxproto=5,indirect";
  return mount("target", place.c_str(), "autofs", 0, options.c_str());
}

void Fill(const std::string& place) {
  CHECK(mkdir(place.c_str(), 0755) == 0 || errno == EEXIST);
  CHECK(mount("target", place.c_str(), "tmpfs", 0, "size=64k") == 0);
  target::Touch(place + "/file");
}

// Each daemon is in a process group of its own: what it does itself is not asked of it.
[[noreturn]] void Leave(const std::string& place) {
  int ends[2];
  CHECK(setpgid(0, 0) == 0 && pipe(ends) == 0);
  _exit(Mount(place, ends[1]) == 0 ? 0 : 77);
}

[[noreturn]] void Serve(const std::string& place) {
  int ends[2];
  CHECK(setpgid(0, 0) == 0 && pipe(ends) == 0);
  CHECK(Mount(place, ends[1]) == 0 && close(ends[1]) == 0);
  const int root = open(place.c_str(), O_RDONLY | O_DIRECTORY);
  unsigned long seconds = 4711;
  CHECK(root >= 0 && ioctl(root, AUTOFS_IOC_SETTIMEOUT, &seconds) == 0);
  CHECK(mkdir((place + "/empty").c_str(), 0755) == 0);
  target::Touch(place + "-ready");
  autofs_v5_packet asked;
  while (read(ends[0], &asked, sizeof(asked)) == sizeof(asked)) {
    CHECK_EQ(asked.hdr.type, autofs_ptype_missing_indirect);
    Fill(place + "/" + asked.name);
    CHECK(ioctl(root, AUTOFS_IOC_READY, asked.wait_queue_token) == 0);
  }
  _exit(3);
}

pid_t Start(void (*step)(const std::string&), const std::string& place) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) step(place);
  return child;
}

bool IsFile(const std::string& path) {
  struct stat st = {};
  return stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode);
}

std::string Names(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.insert(entry.path().filename());
  }
  std::string text;
  for (const std::string& name : names) text += " " + name;
  return text;
}

bool HasMount(const std::string& place, const char* option) {
  const std::string text = target::Read("/proc/self/mountinfo");
  const std::size_t at = text.find(" " + place + " ");
  return at != std::string::npos &&
         text.substr(at, text.find('\n', at) - at).find(option) != std::string::npos;
}

}  // namespace

int main(int, char** argv) {
  if (unshare(CLONE_NEWNS) != 0 ||
      mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    std::puts("no right to mount");
    return 77;
  }
  const std::string served = target::In(argv[1], "served"), left = target::In(argv[1], "left");
  if (target::ExitCode(Start(Leave, left)) == 77) {
    std::puts("no autofs");
    return 77;
  }
  const pid_t daemon = Start(Serve, served);
  target::WaitFor(served + "-ready");
  CHECK(IsFile(served + "/before/file"));

  target::PassCheckpoint(argv[1]);

  CHECK(HasMount(served, "timeout=4711") && Names(served) == " before empty");
  CHECK(HasMount(served + "/before", "tmpfs") && IsFile(served + "/before/file"));
  CHECK(IsFile(served + "/after/file"));
  CHECK(target::Exists(served + "/empty/file"));
  CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);  // for who asks nobody, the first time
  CHECK(!target::Exists(left + "/any") && errno == ENOENT && HasMount(left, "fd=-1"));
  CHECK(kill(daemon, SIGKILL) == 0);
  CHECK_EQ(target::ExitCode(daemon), 128 + SIGKILL);
}
