// What waits to be read at both ends of pseudo-terminals: raw bytes, more of them than a terminal takes at once,
// lines with their ends and one that is not complete, packets, the last words of an end that has closed.
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "target.h"

namespace {

struct Pty {
  int master, slave;
};

Pty Make(bool raw) {
  Pty pty = {posix_openpt(O_RDWR | O_NOCTTY), -1};
  CHECK(pty.master >= 0);
  CHECK(unlockpt(pty.master) == 0);
  pty.slave = open(ptsname(pty.master), O_RDWR | O_NOCTTY);
  CHECK(pty.slave >= 0);
  termios settings = {};
  CHECK(tcgetattr(pty.slave, &settings) == 0);
  if (raw) cfmakeraw(&settings);
  CHECK(tcsetattr(pty.slave, TCSANOW, &settings) == 0);
  return pty;
}

void Write(int fd, const std::string& text) {
  CHECK_EQ(write(fd, text.data(), text.size()), text.size());
}

// What one end writes takes a moment to reach the other.
void AwaitWaiting(int fd, size_t bytes) {
  int waiting = -1;
  while (ioctl(fd, FIONREAD, &waiting) == 0 && static_cast<size_t>(waiting) != bytes) {
    target::Sleep(1);
  }
  CHECK_EQ(waiting, bytes);
}

// One read(2), as a line or packet is given by one.
void ExpectOnce(int fd, const std::string& text) {
  char got[8192];
  CHECK_EQ(read(fd, got, sizeof(got)), text.size());
  CHECK(text == std::string(got, text.size()));
}

void Expect(int fd, const std::string& text) {
  std::string got;
  while (got.size() < text.size()) {
    char bytes[4096];
    const ssize_t size = read(fd, bytes, sizeof(bytes));
    CHECK(size > 0);
    got.append(bytes, static_cast<size_t>(size));
  }
  CHECK(got == text);
}

void ExpectWaiting(int fd, size_t bytes) {
  int waiting = -1;
  CHECK(ioctl(fd, FIONREAD, &waiting) == 0);
  CHECK_EQ(waiting, bytes);
}

}  // namespace

int main(int, char** argv) {
  const Pty raw = Make(true), full = Make(true), lines = Make(false), packets = Make(false),
            closed = Make(false);
  const std::string bytes("typed\x03\x04\x11\x13\r\n\0\xff", 13);
  Write(raw.master, bytes);
  Write(raw.slave, "shown\n");
  AwaitWaiting(raw.slave, bytes.size());
  AwaitWaiting(raw.master, 6);
  std::string much;
  for (int i = 0; i < 1500; ++i) much += static_cast<char>(i) + std::string("...");
  Write(full.master, much);
  Write(full.slave, much);
  AwaitWaiting(full.slave, 4095);
  AwaitWaiting(full.master, 4095);
  // A typed line feed that ends no line, lines that an end of file ends, and the beginning of one.
  Write(lines.master, "one\ntw\x16\no\n\x04three\x04par");
  const std::string echo = "one\r\ntw^\b^Jo\r\nthreepar";
  AwaitWaiting(lines.master, echo.size());
  AwaitWaiting(lines.slave, 14);
  const int on = 1;
  CHECK(ioctl(packets.master, TIOCPKT, &on) == 0);
  Write(packets.slave, "p\n");
  AwaitWaiting(packets.master, 3);
  Write(closed.slave, "last");
  AwaitWaiting(closed.master, 4);
  close(closed.slave);

  target::PassCheckpoint(argv[1]);

  ExpectWaiting(lines.slave, 14);
  ExpectWaiting(lines.master, echo.size());
  ExpectWaiting(packets.master, 3);
  ExpectOnce(raw.slave, bytes);
  ExpectOnce(raw.master, "shown\n");
  Expect(full.slave, much);
  Expect(full.master, much);
  Write(lines.master, "t\n");
  for (const char* const line : {"one\n", "tw\no\n", "", "three", "part\n"}) {
    ExpectOnce(lines.slave, line);
  }
  Expect(lines.master, echo + "t\r\n");
  ExpectOnce(packets.master, std::string("\0p\r\n", 4));
  ExpectOnce(closed.master, "last");
  char byte;
  CHECK(read(closed.master, &byte, 1) == -1 && errno == EIO);
  for (const Pty& pty : {raw, full, lines}) {
    ExpectWaiting(pty.slave, 0);
    ExpectWaiting(pty.master, 0);
  }
  Write(packets.master, "go\n");  // as ever: echoed, and a line
  ExpectOnce(packets.slave, "go\n");
}
