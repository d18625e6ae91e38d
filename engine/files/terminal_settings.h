// What any terminal has, whoever holds its other end.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "engine/files/file_kind.h"

struct stat;
struct termios2;

namespace stasis::engine {

bool IsPts(dev_t device);
/// /dev/ptmx: an open file of it is the other end of a pseudo-terminal.
bool IsMultiplexer(dev_t device);
/// True for the console of a machine, its virtual and serial terminals.
bool IsMachineTerminal(dev_t device);
/// The device of the number that proc_pid_stat(5) has for a controlling terminal (the kernel's new_encode_dev()).
dev_t TerminalDevice(int tty_nr);
/// The number below /dev/pts, which runs on from one major to the next.
std::uint32_t PtsIndex(dev_t device);

/// Rule: CRIU copies the control characters as they lie in memory into the field's 32-bit words, four to each,
/// and back (termios_copy() in its criu/tty.c).
void ToImage(const termios2& settings, image::TermiosEntry& entry);
/// The settings of the line discipline that everybody has, N_TTY; also of images that have one control character in
/// each word, as ours had.
termios2 FromImage(const image::TermiosEntry& entry);

/// Adds what stat(2) says of a terminal's node.
void DumpDevice(const struct stat& node, image::TtyInfoEntry& info);

/// A record of the terminal `fd` with its settings, which are those of its other end too: termios, size,
/// exclusive mode. All else is set to nothing.
Result<image::TtyInfoEntry> DumpSettings(int fd, std::uint32_t id, std::uint32_t index);

/// Adds which settings are locked, ioctl_tty(2) TIOCGLCKTRMIOS.
Status DumpLocked(int fd, image::TtyInfoEntry& info);

/// Puts termios of `info` into force.
Status RestoreTermios(int fd, const image::TtyInfoEntry& info);

/// The record `id` of "tty-info".
Result<image::TtyInfoEntry> TerminalOf(std::uint32_t id, FileRestoreContext& context);

}  // namespace stasis::engine
