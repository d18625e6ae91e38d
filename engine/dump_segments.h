// System V shared memory of the tree under dump.
#pragma once

#include <span>

#include "engine/base/status.h"
#include "engine/image/image_file.h"
#include "engine/memory/dump_memory.h"
#include "engine/tasks/dumped_process.h"

namespace stasis::engine {

/// Adds to `segments` those that somebody of `processes` is attached to, whose pages are read with their areas, and those
/// that wait for somebody, `idle`, whose pages `memory` is told of. Unimplemented: its number is that of other shared
/// memory, too.
Status DumpSegments(std::span<const DumpedProcess> processes, std::span<const int> idle,
                    ImageFileBuilder& segments, MemoryDumper& memory);

}  // namespace stasis::engine
