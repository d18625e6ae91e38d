// What a memfd is besides its open files: its inode.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"
#include "engine/image/schema/memory.pb.h"

namespace stasis::engine {

/// Whether `name` is that of anonymous shared memory, in /proc/PID/maps and of a file.
inline bool IsZeroFile(std::string_view name) { return name == "/dev/zero (deleted)"; }

/// The one of the records of "memfd" with that id; DataLoss: there is none.
Result<image::MemfdInodeEntry> FindMemfd(std::span<const FileRestoreContext::Record> records,
                                         std::uint64_t inode_id);

/// What memfd_create(2) gave, to be mapped; its open flags do not matter to a mapping.
Result<UniqueFd> RestoreMappedMemfd(const image::MemfdFileEntry& memfd,
                                    FileRestoreContext& context);

/// Adds `seals` (F_SEAL_*) to the memfd that is open as `fd`.
Status SealMemfd(int fd, std::uint32_t seals);

}  // namespace stasis::engine
