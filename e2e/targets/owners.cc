// Whose things are: deleted files, memfds, bound sockets, System V objects and message queues that were given to others,
// and who sent a message or is connected.
#include <mqueue.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "target.h"

namespace {

constexpr uid_t kUser = 4321;
constexpr gid_t kGroup = 8765;

void CheckOwner(int fd) {
  struct stat st = {};
  CHECK_EQ(fstat(fd, &st), 0);
  CHECK_EQ(st.st_uid, kUser);
  CHECK_EQ(st.st_gid, kGroup);
}

int DeletedFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  if (fchown(fd, kUser, kGroup) != 0) _exit(77);  // CAP_CHOWN
  CHECK_EQ(unlink(path.c_str()), 0);
  return fd;
}

int Memfd() {
  const int fd = memfd_create("owned", MFD_CLOEXEC);
  CHECK(fd >= 0);
  CHECK_EQ(fchown(fd, kUser, kGroup), 0);
  return fd;
}

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  CHECK(path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, path.c_str(), path.size());
  return address;
}

int BoundSocket(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_un address = AddressOf(path);
  CHECK_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  CHECK_EQ(chown(path.c_str(), kUser, kGroup), 0);
  CHECK_EQ(listen(fd, 1), 0);
  return fd;
}

int Semaphores() {
  const int id = semget(IPC_PRIVATE, 1, 0600);
  CHECK(id >= 0);
  semid_ds set = {};
  CHECK_EQ(semctl(id, 0, IPC_STAT, &set), 0);
  set.sem_perm.uid = kUser;
  set.sem_perm.gid = kGroup;
  CHECK_EQ(semctl(id, 0, IPC_SET, &set), 0);
  return id;
}

int Messages() {
  const int id = msgget(IPC_PRIVATE, 0600);
  CHECK(id >= 0);
  msqid_ds queue = {};
  CHECK_EQ(msgctl(id, IPC_STAT, &queue), 0);
  queue.msg_perm.uid = kUser;
  queue.msg_perm.gid = kGroup;
  CHECK_EQ(msgctl(id, IPC_SET, &queue), 0);
  return id;
}

int Segment() {
  const int id = shmget(IPC_PRIVATE, 4096, 0600);
  CHECK(id >= 0);
  CHECK(shmat(id, nullptr, 0) != reinterpret_cast<void*>(-1));
  shmid_ds segment = {};
  CHECK_EQ(shmctl(id, IPC_STAT, &segment), 0);
  segment.shm_perm.uid = kUser;
  segment.shm_perm.gid = kGroup;
  CHECK_EQ(shmctl(id, IPC_SET, &segment), 0);
  return id;
}

// A child of that user connects and sends a message with its credentials, and stays.
int Connection(int pair[2]) {
  CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), 0);
  const int on = 1;
  CHECK_EQ(setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
  const pid_t child = fork();
  if (child == 0) {
    CHECK_EQ(setresgid(kGroup, kGroup, kGroup), 0);
    CHECK_EQ(setresuid(kUser, kUser, kUser), 0);
    CHECK_EQ(send(pair[1], "x", 1, 0), 1);
    while (true) pause();
  }
  char letter = 0;
  while (recv(pair[0], &letter, 1, MSG_PEEK | MSG_DONTWAIT) != 1) target::Sleep(1);
  return child;
}

void CheckSender(int fd, pid_t child) {
  char letter = 0;
  iovec part = {&letter, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  CHECK_EQ(recvmsg(fd, &message, 0), 1);
  const cmsghdr* const head = CMSG_FIRSTHDR(&message);
  CHECK(head != nullptr && head->cmsg_type == SCM_CREDENTIALS);
  ucred from = {};
  std::memcpy(&from, CMSG_DATA(head), sizeof(from));
  if (from.pid == 0)
    return;  // nobody knows any more: a second restore, in another pid namespace than ours
  CHECK_EQ(from.pid, child);
  CHECK_EQ(from.uid, kUser);
  CHECK_EQ(from.gid, kGroup);
}

}  // namespace

int main(int, char** argv) {
  const std::string path = target::In(argv[1], "socket"),
                    name = "/owners-" + std::to_string(getpid());
  const int deleted = DeletedFile(target::In(argv[1], "gone"));
  const int memfd = Memfd(), bound = BoundSocket(path);
  const int semaphores = Semaphores(), messages = Messages(), segment = Segment();
  const mqd_t queue = mq_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600, nullptr);
  CHECK(queue >= 0);
  CHECK_EQ(fchown(queue, kUser, kGroup), 0);
  int pair[2];
  const pid_t child = Connection(pair);

  target::PassCheckpoint(argv[1]);

  CheckOwner(deleted);
  CheckOwner(memfd);
  CheckOwner(queue);
  struct stat st = {};
  CHECK_EQ(stat(path.c_str(), &st), 0);
  CHECK_EQ(st.st_uid, kUser);
  CHECK_EQ(st.st_gid, kGroup);
  semid_ds set = {};
  CHECK_EQ(semctl(semaphores, 0, IPC_STAT, &set), 0);
  CHECK_EQ(set.sem_perm.uid, kUser);
  CHECK_EQ(set.sem_perm.gid, kGroup);
  msqid_ds waiting = {};
  CHECK_EQ(msgctl(messages, IPC_STAT, &waiting), 0);
  CHECK_EQ(waiting.msg_perm.uid, kUser);
  shmid_ds memory = {};
  CHECK_EQ(shmctl(segment, IPC_STAT, &memory), 0);
  CHECK_EQ(memory.shm_perm.uid, kUser);
  CheckSender(pair[0], child);
  CHECK_EQ(kill(child, SIGKILL), 0);
  CHECK_EQ(target::ExitCode(child), 128 + SIGKILL);
  CHECK(close(bound) == 0 && mq_unlink(name.c_str()) == 0);
  CHECK_EQ(semctl(semaphores, 0, IPC_RMID), 0);
  CHECK_EQ(msgctl(messages, IPC_RMID, nullptr), 0);
  CHECK_EQ(shmctl(segment, IPC_RMID, nullptr), 0);
}
