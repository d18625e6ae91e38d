// System V semaphores, with values, a waiter, and the time that tells who asks that they are ready to use.
#include <sys/sem.h>

#include "target.h"

namespace {

constexpr int kSemaphores = 5;  // not a multiple of 8 bytes

void Operate(int id, unsigned short number, short step) {
  sembuf operation = {.sem_num = number, .sem_op = step, .sem_flg = 0};
  while (semop(id, &operation, 1) != 0) CHECK_EQ(errno, EINTR);
}

}  // namespace

int main(int, char** argv) {
  const key_t key = ftok(argv[0], getpid());
  const int id = semget(key, kSemaphores, IPC_CREAT | IPC_EXCL | 0640);
  CHECK(id >= 0);
  const int idle = semget(IPC_PRIVATE, 1, 0600);
  CHECK(idle >= 0);
  unsigned short values[kSemaphores] = {0, 1, 32767, 3, 500};
  CHECK_EQ(semctl(id, 0, SETALL, values), 0);
  Operate(id, 1, 1);
  const pid_t child = fork();
  if (child == 0) {
    Operate(id, 0, -2);
    _exit(0);
  }
  while (semctl(id, 0, GETNCNT) != 1) target::Sleep(1);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(semget(key, kSemaphores, 0), id);
  unsigned short now[kSemaphores] = {};
  CHECK_EQ(semctl(id, 0, GETALL, now), 0);
  CHECK_EQ(now[1], 2);
  CHECK_EQ(now[2], 32767);
  CHECK_EQ(now[4], 500);
  semid_ds set = {};
  CHECK_EQ(semctl(id, 0, IPC_STAT, &set), 0);
  CHECK_EQ(set.sem_perm.mode & 0777, 0640);
  CHECK(set.sem_otime != 0);
  CHECK_EQ(semctl(idle, 0, IPC_STAT, &set), 0);
  CHECK(set.sem_otime == 0);
  Operate(id, 0, 2);
  CHECK_EQ(target::ExitCode(child), 0);
  CHECK_EQ(semctl(id, 0, IPC_RMID), 0);
  CHECK_EQ(semctl(idle, 0, IPC_RMID), 0);
}
