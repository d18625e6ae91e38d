// System V message queues, with messages of several types, an empty one, and one that is as long as may be.
#include <sys/msg.h>
#include <sys/shm.h>

#include "target.h"

namespace {

struct Message {
  long type;
  char text[8192];
};

void Expect(int id, long type, const std::string& text) {
  Message message = {};
  CHECK_EQ(msgrcv(id, &message, sizeof(message.text), type, IPC_NOWAIT), text.size());
  CHECK(text == std::string(message.text, text.size()));
}

}  // namespace

int main(int, char** argv) {
  const int id = msgget(IPC_PRIVATE, 0620);
  CHECK(id >= 0);
  Message message = {.type = 7, .text = "seven"};
  CHECK_EQ(msgsnd(id, &message, 5, 0), 0);
  message.type = 1;
  CHECK_EQ(msgsnd(id, &message, 0, 0), 0);
  memset(message.text, 'x', sizeof(message.text));
  CHECK_EQ(msgsnd(id, &message, sizeof(message.text), 0), 0);
  // A segment that waits for somebody to attach is the namespace's too.
  const int segment = shmget(IPC_PRIVATE, 3 * 4096, 0600);
  CHECK(segment >= 0);
  char* memory = static_cast<char*>(shmat(segment, nullptr, 0));
  memcpy(memory + 4096, "kept", 5);
  CHECK_EQ(shmdt(memory), 0);

  target::PassCheckpoint(argv[1]);

  msqid_ds queue = {};
  CHECK_EQ(msgctl(id, IPC_STAT, &queue), 0);
  CHECK_EQ(queue.msg_qnum, 3);
  CHECK_EQ(queue.msg_perm.mode & 0777, 0620);
  Expect(id, 1, "");
  Expect(id, 0, "seven");
  Expect(id, 0, std::string(sizeof(message.text), 'x'));
  CHECK_EQ(msgctl(id, IPC_RMID, nullptr), 0);
  memory = static_cast<char*>(shmat(segment, nullptr, 0));
  CHECK_EQ(strcmp(memory + 4096, "kept"), 0);
  CHECK_EQ(memory[0], 0);
  CHECK_EQ(shmctl(segment, IPC_RMID, nullptr), 0);
}
