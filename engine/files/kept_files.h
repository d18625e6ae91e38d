// Files of a restore that others are made from, held once: by who keeps them, then by who gets them.
//
// Rule    A tree may have as many files as its limit allows, and so may we: one that is held a second time until
//         all are there is one too many (RLIMIT_NOFILE, getrlimit(2)).
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// Whether there is one under `key`, given away or not.
bool IsKept(const std::string& key, FileRestoreContext& context);

/// The file under `key`, perhaps by now that of the entry which it was given to; -1: there is none.
int KeptFd(const std::string& key, FileRestoreContext& context);

/// The file under `key`, to be that of entry `id`; a copy when another entry was given it before.
Result<UniqueFd> GiveKept(const std::string& key, std::uint32_t id, FileRestoreContext& context);

}  // namespace stasis::engine
