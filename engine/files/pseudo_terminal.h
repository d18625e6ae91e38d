// Pseudo-terminals that were made in the tree: /dev/ptmx and /dev/pts/N. terminal.cc has those of a starter.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// The open file of /dev/ptmx whose other end is `slave`, or null.
const OpenFile* MasterOf(const OpenFile& slave, std::span<const OpenFile> files);
/// The same of the terminal `index` of the devpts on `device`.
const OpenFile* MasterOf(dev_t device, std::uint32_t index, std::span<const OpenFile> files);
/// True when the other end of the /dev/pts file has been closed: it gives EIO for ever.
bool IsHungUp(const OpenFile& file);

/// Adds the records of both ends of `master`, and gives its number in them.
Result<std::uint32_t> DumpPseudoTerminal(const OpenFile& master, FileDumpContext& context);
/// The same for a /dev/pts file that is hung up.
Result<std::uint32_t> DumpHungUp(const OpenFile& file, FileDumpContext& context);

/// True for a terminal that RestorePseudoTerminal() makes.
bool IsPseudoTerminal(const image::TtyFileEntry& tty, const FileRestoreContext& context);
/// Either end; FailedPrecondition: the number is taken.
Result<UniqueFd> RestorePseudoTerminal(const image::TtyFileEntry& tty, FileRestoreContext& context);
/// Settings, once all ends are open.
Status CompletePseudoTerminals(FileRestoreContext& context);

/// Under which one of a machine is kept that controls a session.
std::string MachineTerminalKey(std::uint32_t id);

/// What controls a session of the tree.
struct ControllingTerminal {
  pid_t session = 0, foreground = 0;  ///< As the tree knows them.
  UniqueFd slave;
};
/// Of the pseudo-terminals that were made, and those of the machine; before their files are closed.
Result<std::vector<ControllingTerminal>> ControllingTerminals(FileRestoreContext& context);

}  // namespace stasis::engine
