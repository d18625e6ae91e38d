// Source  ioctl_tty(2) TIOCSTI, termios(3); drivers/tty/n_tty.c, pty.c, tty_buffer.c; tested on 6.18
// Rule    What an end writes waits in front of the other's line discipline until a worker passes it on, as long
//         as that has less than 4096 bytes. A read(2) that finds nothing waits for the worker first
//         (tty_buffer_flush_work() in n_tty_read()), also with O_NONBLOCK: after its EAGAIN nothing is on the way.
// Rule    TIOCSTI gives a byte to the line discipline of the end that is named, /dev/ptmx too, and has done so when
//         it returns; without room the byte is dropped. With CAP_SYS_ADMIN also where dev.tty.legacy_tiocsti is 0.
// Rule    In canonical mode a read gives one line; 0 bytes are a line that only an end of file ended. What is
//         behind the last complete one is not shown, nor counted by FIONREAD; with room for nothing else the last
//         byte of an incomplete line gives way (n_tty_receive_buf_common()).
// Rule    A change of ICANON or EXTPROC makes one line of all that waits, a change of other flags does not
//         (n_tty_set_termios()). IXON that is cleared starts an output that was stopped, so does a byte under IXANY.
// Rule    A control character of 0 is none (__DISABLED_CHAR).
#include "engine/files/terminal_queue.h"

#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <string_view>
#include <utility>

namespace stasis::engine {
namespace {

// pty_common_install() lets 8 KiB wait in front of a line discipline; a buffer may be longer than its content.
constexpr std::size_t kMostBytes = std::size_t{64} << 10;

int Push(int fd, char byte) { return ::ioctl(fd, TIOCSTI, &byte) == 0 ? 0 : errno; }

int PushAll(int fd, std::span<const char> bytes) {
  int error = 0;
  for (const char byte : bytes) {
    if (error == 0) error = Push(fd, byte);
  }
  return error;
}

// As it came: what is in front of the line discipline is looked at when there is room again.
int WriteRest(int fd, std::span<const char> bytes) {
  constexpr int kMostTries = 5000;
  constexpr timespec kMoment = {.tv_sec = 0, .tv_nsec = 1'000'000};
  for (int i = 0; i < kMostTries && !bytes.empty(); ++i) {
    const ssize_t size = ::write(fd, bytes.data(), bytes.size());
    if (size > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(size));
    } else if (size < 0 && errno != EAGAIN && errno != EINTR) {
      return errno;
    } else {
      ::nanosleep(&kMoment, nullptr);
    }
  }
  return bytes.empty() ? 0 : ENOBUFS;
}

char Unused(std::string_view candidates, std::string_view used) {
  for (const char byte : candidates) {
    if (used.find(byte) == std::string_view::npos) return byte;
  }
  return '\0';
}

// One line, complete or not: in canonical mode a byte with a meaning is put in behind VLNEXT.
int PushContent(int fd, const QuietSettings& quiet, std::span<const char> bytes) {
  int error = 0;
  for (const char byte : bytes) {
    if (error == 0 && quiet.IsSpecial(byte)) error = Push(fd, quiet.literal_next());
    if (error == 0) error = Push(fd, byte);
  }
  return error;
}

// One that an end of file ended has no byte for it. One that ends in VEOL perhaps was ended by an end of file:
// every read of it gives the same.
int PushLine(int fd, const QuietSettings& quiet, std::span<const char> line) {
  const bool has_end = !line.empty() && quiet.IsEnd(line.back());
  const int error = PushContent(fd, quiet, has_end ? line.first(line.size() - 1) : line);
  return error != 0 ? error : Push(fd, has_end ? line.back() : quiet.end_of_file());
}

}  // namespace

TerminalQueue TerminalQueue::WithRoom() {
  TerminalQueue queue;
  queue.bytes.resize(kMostBytes);
  queue.lines.resize(kMostBytes);
  return queue;
}

QuietSettings::QuietSettings(const termios2& before) : before_(before), quiet_(before) {
  const char ends[] = {'\n', static_cast<char>(before.c_cc[VEOL]),
                       static_cast<char>(before.c_cc[VEOL2])};
  const std::string_view used(ends, std::size(ends));
  end_of_file_ = Unused("\x01\x02\x03\x04", used);
  literal_next_ = Unused("\x11\x12\x13\x14", used);
  quiet_.c_iflag &= IXON;
  quiet_.c_oflag &= ~static_cast<tcflag_t>(OPOST);
  quiet_.c_lflag &= ICANON | EXTPROC | TOSTOP;
  quiet_.c_lflag |= IEXTEN;
  std::ranges::fill(quiet_.c_cc, cc_t{0});
  for (const int kept : {VMIN, VTIME, VEOL, VEOL2}) quiet_.c_cc[kept] = before.c_cc[kept];
  quiet_.c_cc[VEOF] = static_cast<cc_t>(end_of_file_);
  quiet_.c_cc[VLNEXT] = static_cast<cc_t>(literal_next_);
}

int QuietSettings::Enter(int fd) const { return ::ioctl(fd, TCSETS2, &quiet_) == 0 ? 0 : errno; }
int QuietSettings::Leave(int fd) const { return ::ioctl(fd, TCSETS2, &before_) == 0 ? 0 : errno; }

bool QuietSettings::IsEnd(char byte) const {
  const auto code = static_cast<cc_t>(byte);
  return byte == '\n' || (code != 0 && (code == before_.c_cc[VEOL] || code == before_.c_cc[VEOL2]));
}
bool QuietSettings::IsSpecial(char byte) const {
  return IsEnd(byte) || byte == end_of_file_ || byte == literal_next_;
}

int TakeAll(int fd, bool canonical, TerminalQueue& queue) {
  while (queue.byte_count < queue.bytes.size() && queue.line_count < queue.lines.size()) {
    const ssize_t size =
        ::read(fd, queue.bytes.data() + queue.byte_count, queue.bytes.size() - queue.byte_count);
    if (size < 0 && errno == EINTR) continue;
    // EIO: at /dev/ptmx all has been read, and the other end is closed. 0: the same as EAGAIN where VMIN is 0.
    if (size < 0) return errno == EAGAIN || errno == EIO ? 0 : errno;
    if (size == 0 && !canonical) return 0;
    if (canonical) queue.lines[queue.line_count++] = static_cast<std::uint32_t>(size);
    queue.byte_count += static_cast<std::size_t>(size);
  }
  return E2BIG;
}

// A line feed of ours makes it complete. Behind VLNEXT that is a byte like others, and another one is needed.
int TakeBeginning(int fd, const QuietSettings& quiet, TerminalQueue& queue) {
  int waiting = 0;
  int error = Push(fd, '\n');
  if (error == 0 && ::ioctl(fd, FIONREAD, &waiting) != 0) error = errno;
  if (error == 0 && waiting == 0) {
    queue.next_is_literal = true;
    error = Push(fd, '\n');
  }
  if (error != 0) return error;
  const std::size_t lines = queue.line_count, before = queue.byte_count;
  error = TakeAll(fd, quiet.canonical(), queue);
  const std::size_t ours = queue.next_is_literal ? 2 : 1;
  if (queue.byte_count >= before + ours) queue.byte_count -= ours;
  queue.line_count = lines;
  return error;
}

int PutBytes(int fd, int other, const TerminalQueue& queue) {
  const std::span<const char> bytes(queue.bytes.data(), queue.byte_count);
  const auto [now, later] = std::pair(bytes.first(std::min(bytes.size(), kLineDisciplineBytes)),
                                      bytes.subspan(std::min(bytes.size(), kLineDisciplineBytes)));
  const int error = PushAll(fd, now);
  if (error != 0 || later.empty()) return error;
  return other < 0 ? ENOBUFS : WriteRest(other, later);
}

int PutLines(int fd, int other, const QuietSettings& quiet, const TerminalQueue& queue) {
  std::span<const char> rest(queue.bytes.data(), queue.byte_count);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < queue.line_count; ++i) {
    const std::span<const char> line = rest.first(queue.lines[i]);
    const bool has_end = !line.empty() && quiet.IsEnd(line.back());
    kept += line.size() + (has_end ? 0 : 1);  // an end of file takes a place, too
    if (kept > kLineDisciplineBytes) return other < 0 ? ENOBUFS : WriteRest(other, rest);
    if (const int error = PushLine(fd, quiet, line); error != 0) return error;
    rest = rest.subspan(line.size());
  }
  if (kept + rest.size() > kLineDisciplineBytes && kept > 0) {
    return other < 0 ? ENOBUFS : WriteRest(other, rest);
  }
  const int error = PushContent(fd, quiet, rest);
  return error == 0 && queue.next_is_literal ? Push(fd, quiet.literal_next()) : error;
}

}  // namespace stasis::engine
