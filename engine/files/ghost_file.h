// Regular files that are open and have no path any more.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// The most content of one deleted file that goes into a checkpoint, in bytes on disk: holes are
/// free. It passes through memory.
inline constexpr std::uint64_t kGhostLimitBytes = std::uint64_t{32} << 20;

/// Saves the content of `file`, which `path` does not lead to any more, and says so in
/// "remap-fpath". Unimplemented when it is too large or no regular file.
Status DumpGhost(const OpenFile& file, const std::string& path, FileDumpContext& context);

/// The number of the ghost file that takes the place of the path of file `id`, or nothing.
Result<std::optional<std::uint32_t>> GhostOf(std::uint32_t id, FileRestoreContext& context);

/// Opens ghost file `number` as `reg` has it. Open files of one inode share it again.
Result<UniqueFd> RestoreGhost(const image::RegFileEntry& reg, std::uint32_t number,
                              FileRestoreContext& context);

}  // namespace stasis::engine
