// A tree on the host with a user namespace of its own, which owns its names and its IPC namespace: the same ids, which
// mean what they meant, and its rights there. A container's rights do not allow it.
#include <grp.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/stat.h>

#include "target.h"

namespace {

constexpr char kIds[] = "0 300000 1000\n5000 400000 10\n";
constexpr char kMsgmax[] = "/proc/sys/kernel/msgmax";

void Write(const std::string& path, const std::string& text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  CHECK(fd >= 0);
  CHECK_EQ(write(fd, text.data(), text.size()), text.size());
  close(fd);
}

// Who has a new user namespace cannot write these maps itself.
void EnterUserNamespace() {
  int told[2];
  CHECK_EQ(pipe2(told, O_CLOEXEC), 0);
  const std::string folder = "/proc/" + std::to_string(getpid());
  const pid_t outside = fork();
  if (outside == 0) {
    char letter = 0;
    CHECK_EQ(read(told[0], &letter, 1), 1);
    Write(folder + "/uid_map", kIds);
    Write(folder + "/gid_map", kIds);
    _exit(0);
  }
  CHECK_EQ(unshare(CLONE_NEWUSER), 0);
  CHECK_EQ(write(told[1], "u", 1), 1);
  CHECK_EQ(target::ExitCode(outside), 0);
  CHECK(close(told[0]) == 0 && close(told[1]) == 0);
  const gid_t groups[] = {7, 5001};
  CHECK_EQ(setgroups(2, groups), 0);
  CHECK(setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0);
  CHECK_EQ(unshare(CLONE_NEWUTS | CLONE_NEWIPC), 0);
}

void CheckOwner(const struct stat& st) {
  CHECK_EQ(st.st_uid, 5002);
  CHECK_EQ(st.st_gid, 6);
}

}  // namespace

int main(int, char** argv) {
  if (unshare(CLONE_NEWUTS) != 0) {
    std::puts("no right to namespaces");
    return 77;
  }
  CHECK_EQ(chmod(argv[1], 0777), 0);
  CHECK(fchmod(STDOUT_FILENO, 0666) == 0 &&
        fchmod(STDERR_FILENO, 0666) == 0);  // it opens them again
  EnterUserNamespace();
  CHECK_EQ(sethostname("inside", 6), 0);
  Write(kMsgmax, "4711");
  const std::string maps = target::Read("/proc/self/uid_map");
  const std::string gone = target::In(argv[1], "gone");
  const int file = open(gone.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(file >= 0 && fchown(file, 5002, 6) == 0 && unlink(gone.c_str()) == 0);
  const int queue = msgget(IPC_PRIVATE, 0600);
  msqid_ds owned = {};
  CHECK(queue >= 0 && msgctl(queue, IPC_STAT, &owned) == 0);
  owned.msg_perm.uid = 5002;
  CHECK_EQ(msgctl(queue, IPC_SET, &owned), 0);

  target::PassCheckpoint(argv[1]);

  CHECK(target::Read("/proc/self/uid_map") == maps && target::Read("/proc/self/gid_map") == maps);
  CHECK(getuid() == 0 && geteuid() == 0 && getgid() == 0);
  gid_t groups[3] = {};
  CHECK_EQ(getgroups(3, groups), 2);
  CHECK(groups[0] == 7 && groups[1] == 5001);
  struct stat st = {};
  CHECK_EQ(fstat(file, &st), 0);
  CheckOwner(st);
  CHECK_EQ(msgctl(queue, IPC_STAT, &owned), 0);
  CHECK_EQ(owned.msg_perm.uid, 5002);
  CHECK(target::Read(kMsgmax) == "4711\n");
  CHECK_EQ(sethostname("again", 5), 0);  // its rights where it has them
  CHECK(chown(argv[0], 5, 5) != 0);      // and nowhere else
}
