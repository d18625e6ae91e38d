// A tree on the host with a UTS and an IPC namespace of its own: names, a segment that nobody is attached to, a
// semaphore, a message that waits. A container's rights do not allow it.
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/utsname.h>

#include "target.h"

namespace {

constexpr key_t kKey = 0x5747a515;

struct Letter {
  long type;
  char text[8];
};

std::string Hostname() {
  utsname names = {};
  CHECK(uname(&names) == 0);
  return std::string(names.nodename) + "." + names.domainname;
}

}  // namespace

int main(int, char** argv) {
  if (unshare(CLONE_NEWUTS | CLONE_NEWIPC) != 0) {
    std::puts("no right to namespaces");
    return 77;
  }
  CHECK(sethostname("inside", 6) == 0);
  CHECK(setdomainname("example", 7) == 0);
  const int segment = shmget(kKey, 4096, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(segment >= 0);
  void* const at = shmat(segment, nullptr, 0);
  CHECK(at != reinterpret_cast<void*>(-1));
  std::strcpy(static_cast<char*>(at), "idle");
  CHECK(shmdt(at) == 0);
  const int semaphore = semget(kKey, 1, IPC_CREAT | IPC_EXCL | 0600);
  CHECK(semaphore >= 0 && semctl(semaphore, 0, SETVAL, 7) == 0);
  const int queue = msgget(kKey, IPC_CREAT | IPC_EXCL | 0600);
  const Letter sent = {.type = 3, .text = "letter"};
  CHECK(queue >= 0 && msgsnd(queue, &sent, sizeof(sent.text), 0) == 0);
  const char* const msgmax = "/proc/sys/kernel/msgmax";  // the namespace's, not the machine's
  const int setting = open(msgmax, O_RDWR);
  CHECK(setting >= 0);

  target::PassCheckpoint(argv[1]);

  CHECK(Hostname() == "inside.example");
  CHECK_EQ(shmget(kKey, 4096, 0), segment);
  const void* const again = shmat(segment, nullptr, SHM_RDONLY);
  CHECK(std::strcmp(static_cast<const char*>(again), "idle") == 0);
  CHECK_EQ(semctl(semaphore, 0, GETVAL), 7);
  Letter got = {};
  CHECK_EQ(msgrcv(queue, &got, sizeof(got.text), 3, IPC_NOWAIT), sizeof(got.text));
  CHECK(std::strcmp(got.text, "letter") == 0);
  CHECK(write(setting, "4711", 4) == 4 && target::Read(msgmax) == "4711\n");
  CHECK(unshare(CLONE_NEWUTS) == 0);  // it has kept its rights
}
