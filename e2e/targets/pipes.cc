// Pipes: content, size and flags; one whose writer is gone, and one shared by two processes.
#include <vector>

#include "target.h"

int main(int, char** argv) {
  int full[2];
  CHECK(pipe2(full, O_CLOEXEC) == 0);
  CHECK(fcntl(full[1], F_SETPIPE_SZ, 131072) >= 131072);
  CHECK(fcntl(full[0], F_SETFL, O_NONBLOCK) == 0);
  std::vector<char> content(100'000);
  for (size_t i = 0; i < content.size(); i++) {
    content[i] = static_cast<char>(i * 7);
  }
  CHECK_EQ(write(full[1], content.data(), content.size()), content.size());

  int half[2];
  CHECK(pipe(half) == 0);
  CHECK_EQ(write(half[1], "last words", 10), 10);
  close(half[1]);

  int request[2];
  int answer[2];
  CHECK(pipe(request) == 0 && pipe(answer) == 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char byte = 0;
    CHECK_EQ(read(request[0], &byte, 1), 1);  // blocks across the checkpoint
    byte++;
    CHECK_EQ(write(answer[1], &byte, 1), 1);
    _exit(0);
  }

  int packets[2];
  CHECK(pipe2(packets, O_DIRECT | O_CLOEXEC) == 0);
  CHECK_EQ(write(packets[1], "first", 5), 5);
  CHECK_EQ(write(packets[1], "second", 6), 6);

  target::PassCheckpoint(argv[1]);

  CHECK(fcntl(full[0], F_GETPIPE_SZ) >= 131072);
  CHECK(fcntl(full[0], F_GETFL) & O_NONBLOCK);
  CHECK_EQ(fcntl(full[1], F_GETFL) & O_NONBLOCK, 0);
  CHECK_EQ(fcntl(full[0], F_GETFD), FD_CLOEXEC);
  CHECK_EQ(fcntl(half[0], F_GETFD), 0);
  std::vector<char> got(content.size());
  for (size_t at = 0; at < got.size();) {
    const ssize_t bytes = read(full[0], got.data() + at, got.size() - at);
    CHECK(bytes > 0);
    at += static_cast<size_t>(bytes);
  }
  CHECK(got == content);
  char byte = 'a';
  CHECK(read(full[0], &byte, 1) == -1 && errno == EAGAIN);
  CHECK_EQ(read(half[0], got.data(), got.size()), 10);
  CHECK(memcmp(got.data(), "last words", 10) == 0);
  CHECK_EQ(read(half[0], got.data(), 1), 0);
  CHECK_EQ(write(request[1], &byte, 1), 1);
  CHECK_EQ(read(answer[0], &byte, 1), 1);
  CHECK_EQ(byte, 'b');
  CHECK_EQ(target::ExitCode(child), 0);
  CHECK(fcntl(packets[1], F_GETFL) & O_DIRECT);
  CHECK_EQ(fcntl(packets[1], F_GETFL) & O_NONBLOCK, 0);
  CHECK_EQ(write(packets[1], "third", 5), 5);
  char packet[16];
  CHECK_EQ(read(packets[0], packet, sizeof(packet)), 5);
  CHECK_EQ(read(packets[0], packet, sizeof(packet)), 6);
  CHECK(memcmp(packet, "second", 6) == 0);
  CHECK_EQ(read(packets[0], packet, sizeof(packet)), 5);
}
