// Files that are open and have no path any more.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// The most content of one deleted file that goes into a checkpoint unless Options say otherwise, in bytes
/// on disk: holes are free. It passes through memory.
inline constexpr std::uint64_t kGhostLimitBytes = std::uint64_t{256} << 20;

/// Devices without state, the same everywhere, Documentation/admin-guide/devices.txt: /dev/null, zero, full,
/// random, urandom.
bool IsHarmlessDevice(mode_t mode, dev_t device);

/// Saves `file`, which `path` does not lead to any more, and says so in "remap-fpath" of the REG entry `id`.
/// Unimplemented when it is too large.
Status DumpGhost(const OpenFile& file, std::uint32_t id, const std::string& path,
                 FileDumpContext& context);

/// What takes the place of the path of REG entry `id`, or nothing.
Result<std::optional<image::RemapFilePathEntry>> RemapOf(std::uint32_t id,
                                                         FileRestoreContext& context);

/// Ghost file `number`, made once, as `reg` had it, with the path that it lost: open O_PATH or, the first of a
/// regular file, for reading and writing. Owned by the context.
Result<int> KeepGhost(const image::RegFileEntry& reg, std::uint32_t number,
                      FileRestoreContext& context);

/// Opens what `remap` stands for as `reg` has it. Open files of one inode share it again.
Result<UniqueFd> RestoreRemapped(const image::RegFileEntry& reg,
                                 const image::RemapFilePathEntry& remap,
                                 FileRestoreContext& context);

}  // namespace stasis::engine
