// Pseudo-terminals made inside: settings, numbers, packet mode; one that controls a child's session, with
// /dev/tty open, a background group and a grandchild that inherits it; one that is hung up.
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

#include "target.h"

namespace {

struct Pty {
  int master, slave;
};

Pty Make() {
  Pty pty = {posix_openpt(O_RDWR | O_NOCTTY), -1};
  CHECK(pty.master >= 0);
  CHECK(unlockpt(pty.master) == 0);
  pty.slave = open(ptsname(pty.master), O_RDWR | O_NOCTTY);
  CHECK(pty.slave >= 0);
  return pty;
}

void Expect(int fd, const std::string& text) {
  char got[64];
  CHECK_EQ(read(fd, got, sizeof(got)), text.size());
  CHECK(text == std::string(got, text.size()));
}

char Hear(int fd) {
  char byte = 0;
  CHECK_EQ(read(fd, &byte, 1), 1);
  return byte;
}

// Leads a session that `pty` controls, with a group in the foreground that is not its own.
[[noreturn]] void Lead(const Pty& pty, int talk) {
  CHECK(setsid() == getpid());
  CHECK(ioctl(pty.slave, TIOCSCTTY, 0) == 0);
  close(pty.slave);
  close(pty.master);
  const int tty = open("/dev/tty", O_RDWR);
  CHECK(tty >= 0);
  const pid_t child = fork();
  if (child == 0) {
    close(tty);
    CHECK(setpgid(0, 0) == 0);
    CHECK(write(talk, "f", 1) == 1);
    CHECK_EQ(Hear(talk), 'f');
    const int own = open("/dev/tty", O_RDWR);
    CHECK(own >= 0);
    CHECK_EQ(tcgetpgrp(own), getpid());
    _exit(0);
  }
  CHECK_EQ(setpgid(child, child) == 0 || errno == EACCES, true);
  CHECK(tcsetpgrp(tty, child) == 0);
  CHECK(write(talk, "l", 1) == 1);
  CHECK_EQ(target::ExitCode(child), 0);
  CHECK_EQ(tcgetsid(tty), getpid());
  CHECK(write(tty, "controlled", 10) == 10);
  _exit(0);
}

}  // namespace

int main(int, char** argv) {
  const Pty raw = Make(), other = Make(), packets = Make(), hung = Make(), control = Make();
  termios settings = {};
  CHECK(tcgetattr(raw.slave, &settings) == 0);
  cfmakeraw(&settings);
  settings.c_cc[VINTR] = 7;
  CHECK(tcsetattr(raw.slave, TCSANOW, &settings) == 0);
  winsize size = {};
  size.ws_row = 12;
  size.ws_col = 34;
  CHECK(ioctl(raw.master, TIOCSWINSZ, &size) == 0);
  CHECK(fchmod(raw.slave, 0611) == 0);
  const std::string raw_path = ptsname(raw.master), other_path = ptsname(other.master);
  const int again = open(raw_path.c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK);
  CHECK(again >= 0);
  const int on = 1;
  CHECK(ioctl(packets.master, TIOCPKT, &on) == 0);
  close(hung.master);

  int talk[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, talk) == 0);
  const pid_t leader = fork();
  if (leader == 0) Lead(control, talk[1]);
  close(control.slave);
  CHECK(Hear(talk[0]) != 0);
  CHECK(Hear(talk[0]) != 0);

  target::PassCheckpoint(argv[1]);

  CHECK(raw_path == ptsname(raw.master));
  CHECK(other_path == ptsname(other.master));
  CHECK(tcgetattr(raw.slave, &settings) == 0);
  CHECK_EQ(settings.c_cc[VINTR], 7);
  CHECK_EQ(settings.c_lflag & ECHO, 0);
  CHECK(ioctl(raw.slave, TIOCGWINSZ, &size) == 0);
  CHECK_EQ(size.ws_col, 34);
  struct stat st = {};
  CHECK(stat(raw_path.c_str(), &st) == 0);
  CHECK_EQ(st.st_mode & 0777, 0611);
  CHECK_EQ(fcntl(again, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
  CHECK(write(raw.master, "typed", 5) == 5);
  Expect(raw.slave, "typed");
  CHECK(write(raw.slave, "shown", 5) == 5);
  Expect(raw.master, "shown");
  CHECK(tcgetattr(other.slave, &settings) == 0);
  CHECK(settings.c_lflag & ECHO);
  CHECK(write(packets.slave, "p", 1) == 1);
  Expect(packets.master, std::string("\0p", 2));
  char byte = 0;
  CHECK_EQ(read(hung.slave, &byte, 1), 0);
  CHECK(write(hung.slave, &byte, 1) == -1 && errno == EIO);

  pid_t session = 0;
  CHECK(ioctl(control.master, TIOCGSID, &session) == 0);
  CHECK_EQ(session, leader);
  CHECK(write(talk[0], "f", 1) == 1);
  Expect(control.master, "controlled");
  CHECK_EQ(target::ExitCode(leader), 0);
}
