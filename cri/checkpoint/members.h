// The members of an archive that describe the container: as containerd and CRI-O write them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "archive/archive_writer.h"
#include "cri/container_facts.h"
#include "engine/base/unique_fd.h"
#include "engine/dump.h"

namespace stasis::cri {

/// The container's log, and how much of it was written by what is in the checkpoint.
struct LogExtent {
  UniqueFd file;  ///< Not open: the container has none.
  std::uint64_t size_bytes = 0;
};

/// The log of the container, of which SetExtent decides how much.
LogExtent OpenContainerLog(const ContainerFacts& facts);

/// Takes the log as it is now. To be called while the container stands still: what it writes once it
/// runs on, a restored one writes again. What was on its way through the runtime's pipes had the time of
/// the memory's copying to arrive.
Status SetExtent(LogExtent& log);

/// Adds config.dump, spec.dump, status.dump, status, bind.mounts, stats-dump, dump.log and the log.
Status AddMembers(const ContainerFacts& facts, const LogExtent& log,
                  const engine::DumpReport& report, const std::vector<std::string>& notes,
                  archive::ArchiveWriter& writer);

}  // namespace stasis::cri
