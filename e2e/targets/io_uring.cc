// io_uring(7): rings at rest. Their positions, completions that nobody has fetched, and how they were set up.
#include <thread>

#include "ring.h"

namespace {

using target::Ring;

// How DEFER_TASKRUN shows: what was completed elsewhere comes only when its thread asks for events.
void CheckDeferred(Ring& ring) {
  int pipes[2];
  CHECK(pipe2(pipes, O_CLOEXEC) == 0);
  char byte = 0;
  io_uring_sqe& read = ring.Next();
  read.opcode = IORING_OP_READ;
  read.fd = pipes[0];
  read.addr = reinterpret_cast<std::uint64_t>(&byte);
  read.len = 1;
  read.user_data = 77;
  CHECK_EQ(ring.Submit(), 1);
  CHECK(write(pipes[1], "x", 1) == 1);
  for (int i = 0; i < 10; ++i) target::Sleep(1);
  CHECK_EQ(ring.waiting(), 0);
  CHECK_EQ(target::Enter(ring.fd(), 0, 1, IORING_ENTER_GETEVENTS), 0);
  CHECK_EQ(ring.Take().user_data, 77);
  CHECK(byte == 'x');
  close(pipes[0]);
  close(pipes[1]);
}

// Without DEFER_TASKRUN any thread may submit, and a ring for one issuer refuses others.
int SubmitElsewhere(int fd) {
  const pid_t child = fork();
  if (child == 0) {
    const int result = target::Enter(fd, 0, 0, IORING_ENTER_GETEVENTS);
    _exit(result < 0 ? errno : 0);
  }
  return target::ExitCode(child);
}

}  // namespace

int main(int, char** argv) {
  const char* const folder = argv[1];
  Ring fresh(4, 0);
  Ring plain(8, 0);
  plain.Spin(1000);
  Ring waiting(8, 0, 32);
  waiting.Spin(45);
  for (std::uint64_t i = 0; i < 20; ++i)
    waiting.Leave(1000 + i);  // the end of the queue lies among them
  Ring full(4, IORING_SETUP_SUBMIT_ALL);
  full.Spin(3);
  for (std::uint64_t i = 0; i < 8; ++i) full.Leave(i);
  Ring deferred(16, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  deferred.Spin(100003);
  Ring large(8, IORING_SETUP_SQE128 | IORING_SETUP_CQE32);
  large.Spin(21);
  large.Leave(5);
  Ring prepared(8, 0);
  prepared.Spin(6);
  for (std::uint64_t i = 0; i < 5; ++i) prepared.Next().user_data = 200 + i;  // not told of yet
  const int again = fcntl(plain.fd(), F_DUPFD, 100);
  CHECK(again >= 100);
  Ring skipping(8, 0);
  for (int i = 0; i < 9; ++i) {
    skipping.Next().flags = i % 3 == 0 ? 0 : IOSQE_CQE_SKIP_SUCCESS;
    CHECK_EQ(skipping.Submit(), 1);
  }

  Ring long_one(256, 0, 2048);
  long_one.Spin(5000);
  for (std::uint64_t i = 0; i < 2000; ++i) long_one.Leave(i);
  Ring worked(8, 0);
  char zeros[16] = {};
  io_uring_sqe& read = worked.Next();
  read.opcode = IORING_OP_READ;
  read.flags = IOSQE_ASYNC;  // by a thread of the kernel, which waits for more to do
  read.fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  read.addr = reinterpret_cast<std::uint64_t>(zeros);
  read.len = sizeof(zeros);
  CHECK_EQ(worked.Run().res, sizeof(zeros));
  // A thread that waits for a completion, which nothing but a request ends.
  Ring awaited(8, 0);
  int waited = -1;
  std::thread waiter([&] { waited = target::Enter(awaited.fd(), 0, 1, IORING_ENTER_GETEVENTS); });

  target::PassCheckpoint(folder);

  awaited.Leave(9);
  waiter.join();
  CHECK_EQ(waited, 0);
  CHECK_EQ(awaited.Take().user_data, 9);
  CHECK_EQ(fresh.taken(), 0);
  CHECK_EQ(plain.taken(), 1000);
  CHECK_EQ(plain.completed(), 1000);
  CHECK_EQ(waiting.waiting(), 20);
  CHECK_EQ(full.waiting(), 8);
  CHECK_EQ(skipping.waiting(), 3);
  // None of these may overwrite what waits.
  for (std::uint64_t i = 20; i < 32; ++i) waiting.Leave(1000 + i);
  for (std::uint64_t i = 0; i < 32; ++i) CHECK_EQ(waiting.Take().user_data, 1000 + i);
  for (std::uint64_t i = 0; i < 8; ++i) CHECK_EQ(full.Take().user_data, i);
  CHECK_EQ(large.Take().user_data, 5);
  for (std::uint64_t i = 0; i < 2000; ++i) CHECK_EQ(long_one.Take().user_data, i);
  CHECK_EQ(prepared.Submit(5), 5);
  for (std::uint64_t i = 0; i < 5; ++i) CHECK_EQ(prepared.Take().user_data, 200 + i);
  for (int i = 0; i < 3; ++i) skipping.Take();
  CHECK_EQ(SubmitElsewhere(deferred.fd()), EEXIST);
  CHECK_EQ(SubmitElsewhere(again), 0);
  CHECK((fcntl(again, F_GETFD) & FD_CLOEXEC) == 0);
  CHECK((fcntl(plain.fd(), F_GETFD) & FD_CLOEXEC) != 0);
  CheckDeferred(deferred);
  for (Ring* const ring : {&fresh, &plain, &waiting, &full, &deferred, &large, &prepared, &skipping,
                           &worked, &long_one}) {
    ring->Spin(100);
  }
  // A drain is refused once a completion was skipped, and only then.
  skipping.Next().flags = IOSQE_IO_DRAIN;
  CHECK_EQ(skipping.Run().res, -EOPNOTSUPP);
  plain.Next().flags = IOSQE_IO_DRAIN;
  CHECK_EQ(plain.Run().res, 0);
  return 0;
}
