// What waits to be read at the ends of a pseudo-terminal.
#pragma once

#include <cstdint>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// The ends of a pseudo-terminal of the tree.
struct TerminalEnds {
  const OpenFile& master;
  const OpenFile* slave = nullptr;  ///< One of the files of the other end; null: none is open.
  struct stat node = {};            ///< Of the file below /dev/pts.
  std::uint32_t index = 0;
  bool packets = false, locked_settings = false, hung_up = false;
};

/// Adds a record "tty-data" for each end at which something waits. What cannot be taken and put back as it was is
/// left alone, and the report says so.
Status DumpTerminalData(const TerminalEnds& ends, FileDumpContext& context);

/// Puts it where it was. The settings are in force, but for packet mode. `slave`: -1, or open for a moment.
Status RestoreTerminalData(int master, int slave, const image::TtyInfoEntry& info,
                           FileRestoreContext& context);

}  // namespace stasis::engine
