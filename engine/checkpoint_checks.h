// What the images of one process have to hold, taken by themselves. Each Status begins with `name`, the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/checkpoint_images.h"

namespace stasis::engine {

/// TaskCoreEntry.task_state
enum TaskState : std::uint32_t { kAlive = 1, kDead = 2, kStopped = 3 };

/// `name` holds what no checkpoint has.
Status Broken(std::string_view name, std::string_view what);

/// Areas in rising order that do not overlap, of files that `images` has, with guards in them alone.
Status CheckAreas(const std::string& name, const image::MmEntry& mm,
                  const CheckpointImages& images);

/// FailedPrecondition: it is of another type of processor.
Status CheckArchitecture(const std::string& name, const image::CoreEntry& core);

/// What every thread that lives has.
Status CheckThread(const std::string& name, const image::CoreEntry& core);
/// And what the first of a process has besides.
Status CheckLeader(const std::string& name, const image::CoreEntry& core);

}  // namespace stasis::engine
