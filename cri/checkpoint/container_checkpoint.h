// The checkpoint of one container, made in this process: what stasisd's CheckpointContainer and
// `stasis checkpoint --container` have in common.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "archive/archive_writer.h"
#include "archive/compression.h"
#include "cri/checkpoint/namespace_share.h"
#include "cri/container_facts.h"
#include "engine/dump.h"

namespace stasis::cri {

/// FailedPrecondition: the container does not run, or is not restored yet.
Status CheckRunning(const ContainerFacts& facts);

/// What the runtime knows of container `id`, which CheckRunning. NotFound: no such container.
Result<ContainerFacts> DescribeRunning(Upstream& upstream, const std::string& id,
                                       const CallLimits& limits);

struct ContainerCheckpoint {
  engine::DumpReport report;
  std::vector<std::string> notes;  ///< The report's, and those on the root file system.
  std::uint64_t archive_bytes = 0;
  std::optional<archive::CompressionReport> compression;  ///< Unset: nothing was compressed.
  std::chrono::microseconds total{};
};

struct ArchiveRules {
  std::optional<archive::Compression> compression = {};
  int least_free_percent = 0;            ///< Of its disk, which is left free.
  NamespaceShare::Part* part = nullptr;  ///< Of its namespace's share; null: that has no limit.
};

/// Has `request` tell `writer`, which outlives the dump, whenever the tree stands still.
void HurryWhileStopped(engine::DumpRequest& request, archive::ArchiveWriter& writer);

/// Writes the archive `location`, an absolute path, of the container: images, changes to its root
/// file system, log, and what describes it. `request` says what becomes of the container, and how
/// long all may take; the rest of it is filled in here. On failure the container runs on and nothing
/// is on disk. The calling thread becomes the tracer.
Result<ContainerCheckpoint> WriteArchive(const ContainerFacts& facts, const std::string& location,
                                         engine::DumpRequest request, const ArchiveRules& rules);

}  // namespace stasis::cri
