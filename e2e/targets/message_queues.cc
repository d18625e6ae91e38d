// POSIX message queues: one with messages of several priorities that is open several times, one that is
// unlinked, one that nobody has open, and one that a child waits on.
#include <mqueue.h>
#include <signal.h>
#include <sys/stat.h>

#include "target.h"

namespace {

std::string Name(const char* which) {
  return "/stasis-target-" + std::string(which) + "-" + std::to_string(getpid());
}

mqd_t Make(const std::string& name, int flags, long messages, long bytes) {
  mq_attr attributes = {};
  attributes.mq_maxmsg = messages;
  attributes.mq_msgsize = bytes;
  const mqd_t queue = mq_open(name.c_str(), flags | O_CREAT | O_EXCL, 0620, &attributes);
  if (queue < 0 && errno == ENOSYS) _exit(77);
  CHECK(queue >= 0);
  return queue;
}

void Expect(mqd_t queue, unsigned priority, const std::string& text) {
  char buffer[8192];
  unsigned got = 0;
  CHECK_EQ(mq_receive(queue, buffer, sizeof(buffer), &got), text.size());
  CHECK_EQ(got, priority);
  CHECK(text == std::string(buffer, text.size()));
}

void Send(mqd_t queue, unsigned priority, const std::string& text) {
  CHECK(mq_send(queue, text.data(), text.size(), priority) == 0);
}

}  // namespace

int main(int, char** argv) {
  const std::string name = Name("full"), idle_name = Name("idle");
  const mqd_t full = Make(name, O_RDWR | O_NONBLOCK, 6, 8192);
  const mqd_t writer = mq_open(name.c_str(), O_WRONLY | O_CLOEXEC);
  CHECK(writer >= 0);
  CHECK(fchmod(full, 0640) == 0);
  const std::string longest(8192, 'x');
  Send(full, 3, "three");
  Send(full, 31000, longest);
  Send(full, 3, "three again");
  Send(full, 0, "");
  const mqd_t unlinked = Make(Name("gone"), O_RDWR, 2, 16);
  CHECK(mq_unlink(Name("gone").c_str()) == 0);
  Send(unlinked, 1, "unlinked");
  mqd_t idle = Make(idle_name, O_RDWR, 2, 8192);
  Send(idle, 5, "idle");
  mq_close(idle);
  const std::string asked_name = Name("asked");
  const mqd_t asked = Make(asked_name, O_RDWR, 1, 8192);
  const pid_t child = fork();
  if (child == 0) {
    Expect(asked, 2, "for you");
    _exit(0);
  }

  target::PassCheckpoint(argv[1]);

  mq_attr attributes = {};
  CHECK(mq_getattr(full, &attributes) == 0);
  CHECK_EQ(attributes.mq_maxmsg, 6);
  CHECK_EQ(attributes.mq_curmsgs, 4);
  CHECK_EQ(attributes.mq_flags, O_NONBLOCK);
  struct stat st = {};
  CHECK(fstat(full, &st) == 0);
  CHECK_EQ(st.st_mode & 0777, 0640);
  CHECK_EQ(fcntl(writer, F_GETFD), FD_CLOEXEC);
  CHECK(mq_getattr(writer, &attributes) == 0);
  CHECK_EQ(attributes.mq_flags, 0);
  Send(writer, 31000, "sent now");
  Expect(full, 31000, longest);
  Expect(full, 31000, "sent now");
  Expect(full, 3, "three");
  Expect(full, 3, "three again");
  Expect(full, 0, "");
  char buffer[8192];
  CHECK(mq_receive(full, buffer, sizeof(buffer), nullptr) == -1 && errno == EAGAIN);
  CHECK(mq_receive(writer, buffer, sizeof(buffer), nullptr) == -1 && errno == EBADF);
  CHECK(mq_receive(unlinked, buffer, 16, nullptr) == 8);
  CHECK(mq_open(Name("gone").c_str(), O_RDWR) == -1 && errno == ENOENT);
  idle = mq_open(idle_name.c_str(), O_RDWR);
  CHECK(idle >= 0);
  Expect(idle, 5, "idle");
  Send(asked, 2, "for you");
  CHECK_EQ(target::ExitCode(child), 0);
  for (const std::string& made : {name, idle_name, asked_name}) {
    CHECK(mq_unlink(made.c_str()) == 0);
  }
}
