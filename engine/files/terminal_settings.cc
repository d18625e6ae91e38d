// Source  ioctl_tty(2), pts(4); tested on 6.18
// Rule    The settings of a pseudo-terminal are those of its /dev/pts end, which the calls reach from both.
#include "engine/files/terminal_settings.h"

#include <asm/termbits.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

namespace stasis::engine {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kTtyDevices = 5, kMultiplexer = 2, kFirstPts = 136, kLastPts = 143;

}  // namespace

bool IsPts(dev_t device) { return major(device) >= kFirstPts && major(device) <= kLastPts; }
bool IsMultiplexer(dev_t device) { return device == makedev(kTtyDevices, kMultiplexer); }

std::uint32_t PtsIndex(dev_t device) {
  constexpr unsigned kMinors = 256;
  return (major(device) - kFirstPts) * kMinors + minor(device);
}

void ToImage(const termios2& settings, image::TermiosEntry& entry) {
  entry.set_c_iflag(settings.c_iflag);
  entry.set_c_oflag(settings.c_oflag);
  entry.set_c_cflag(settings.c_cflag);
  entry.set_c_lflag(settings.c_lflag);
  entry.set_c_line(settings.c_line);
  entry.set_c_ispeed(settings.c_ispeed);
  entry.set_c_ospeed(settings.c_ospeed);
  for (std::size_t i = 0; i < std::size(settings.c_cc); ++i) entry.add_c_cc(0);
  for (std::size_t i = 0; i < std::size(settings.c_cc); ++i) {
    const int word = static_cast<int>(i / 4);
    entry.set_c_cc(word, entry.c_cc(word) | std::uint32_t{settings.c_cc[i]} << i % 4 * 8);
  }
}

termios2 FromImage(const image::TermiosEntry& entry) {
  termios2 settings = {};
  settings.c_iflag = entry.c_iflag();
  settings.c_oflag = entry.c_oflag();
  settings.c_cflag = entry.c_cflag();
  settings.c_lflag = entry.c_lflag();
  settings.c_line = N_TTY;  // another line discipline is code of the kernel's that nobody asked for
  settings.c_ispeed = entry.c_ispeed();
  settings.c_ospeed = entry.c_ospeed();
  constexpr int kCharacters = sizeof(settings.c_cc), kPackedWords = (kCharacters + 3) / 4;
  const auto& words = entry.c_cc();
  const bool packed =
      std::ranges::any_of(words, [](std::uint32_t word) { return word > 0xff; }) ||
      std::ranges::all_of(words.begin() + std::min(kPackedWords, words.size()), words.end(),
                          [](std::uint32_t word) { return word == 0; });
  for (int i = 0; i < std::min(words.size(), kCharacters); ++i) {
    const std::uint32_t character = packed ? words.Get(i / 4) >> i % 4 * 8 : words.Get(i);
    settings.c_cc[i] = static_cast<cc_t>(character & 0xff);
  }
  return settings;
}

void DumpDevice(const struct stat& node, image::TtyInfoEntry& info) {
  info.set_rdev(static_cast<std::uint32_t>(node.st_rdev));
  info.set_dev(static_cast<std::uint32_t>(node.st_dev));
  info.set_uid(node.st_uid);
  info.set_gid(node.st_gid);
}

Result<image::TtyInfoEntry> DumpSettings(int fd, std::uint32_t id, std::uint32_t index) {
  image::TtyInfoEntry info;
  info.set_id(id);
  info.set_type(image::TTY_PTY);
  info.set_locked(false);
  info.set_packet_mode(false);
  info.set_sid(0);
  info.set_pgrp(0);
  info.set_rdev(0);
  info.mutable_pty()->set_index(index);
  int exclusive = 0;
  termios2 settings = {};
  winsize size = {};
  if (::ioctl(fd, TIOCGEXCL, &exclusive) != 0 || ::ioctl(fd, TCGETS2, &settings) != 0 ||
      ::ioctl(fd, TIOCGWINSZ, &size) != 0) {
    return SyscallError(errno, "settings of a terminal");
  }
  info.set_exclusive(exclusive != 0);
  ToImage(settings, *info.mutable_termios());
  info.mutable_winsize()->set_ws_row(size.ws_row);
  info.mutable_winsize()->set_ws_col(size.ws_col);
  info.mutable_winsize()->set_ws_xpixel(size.ws_xpixel);
  info.mutable_winsize()->set_ws_ypixel(size.ws_ypixel);
  return info;
}

Status DumpLocked(int fd, image::TtyInfoEntry& info) {
  termios2 locked = {};
  if (::ioctl(fd, TIOCGLCKTRMIOS, &locked) != 0) {
    return SyscallError(errno, "TIOCGLCKTRMIOS");
  }
  ToImage(locked, *info.mutable_termios_locked());
  return OkStatus();
}

Status RestoreTermios(int fd, const image::TtyInfoEntry& info) {
  if (!info.has_termios()) return OkStatus();
  const image::TermiosEntry& entry = info.termios();
  if (entry.c_cc_size() != static_cast<int>(sizeof(termios2::c_cc))) {
    return DataLoss("a terminal with " + std::to_string(entry.c_cc_size()) + " control characters");
  }
  const termios2 settings = FromImage(entry);
  if (::ioctl(fd, TCSETS2, &settings) != 0) {
    return SyscallError(errno, "settings of the terminal");
  }
  return OkStatus();
}

Result<image::TtyInfoEntry> TerminalOf(std::uint32_t id, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const auto records, context.Records("tty-info"));
  for (const FileRestoreContext::Record& record : records) {
    image::TtyInfoEntry info;
    if (!info.ParsePartialFromString(record.message) || !info.IsInitialized()) {
      return DataLoss("tty-info: a record does not parse");
    }
    if (info.id() == id) return info;
  }
  return DataLoss("tty-info has no terminal " + std::to_string(id));
}

}  // namespace stasis::engine
