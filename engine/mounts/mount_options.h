// Options of a new file system, as /proc/PID/mountinfo shows them and fsconfig(2) takes them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {

/// A key, and its value where it has one.
using MountOption = std::pair<std::string, std::optional<std::string>>;

/// There is one of the file system `type` on a machine, whoever mounts it.
bool IsOfMachine(std::string_view type);

/// Those of `entry` that make its file system what it is; not that it is read-only, nor a label of the host's.
/// Unimplemented: it has others.
Result<std::vector<MountOption>> OptionsOf(const image::MntEntry& entry);

/// Has the owner that `entry` names in its options as the user namespace of `ids` has it, in which it is mounted again. The
/// kernel shows it as ours does, to whoever asks.
void ShowOptionsInside(const UserIds& ids, image::MntEntry& entry);

}  // namespace stasis::engine
