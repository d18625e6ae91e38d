// What is in a checkpoint: who it was, its processes, files, sockets, memory, sizes and times.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "archive/archive.h"
#include "archive/members.h"
#include "archive/open_files.h"
#include "engine/base/status.h"

namespace stasis::archive {

struct InspectedProcess {
  std::uint32_t pid = 0;
  std::uint32_t parent = 0;
  std::uint32_t group = 0;
  std::uint32_t session = 0;
  std::uint64_t threads = 0;
  std::string name;                  ///< comm
  std::string state;                 ///< "alive", "zombie", "stopped"
  std::vector<std::string> command;  ///< From its memory; empty where that was not saved.
  std::string executable;
  std::string folder;  ///< Its working directory.
  std::uint64_t mapped_bytes = 0;
  std::uint64_t saved_bytes = 0;
  std::vector<DescribedFile> files;
};

struct Inspection {
  std::string source;
  ConfigDump config;
  SpecSummary spec;
  std::optional<Manifest> manifest;  ///< Archives of ours have one.
  std::uint64_t archive_bytes = 0;  ///< Of all members; of images alone for a plain folder of them.
  std::uint64_t images_bytes = 0;
  std::uint64_t pages_bytes = 0;
  std::uint64_t rootfs_bytes = 0;
  std::optional<std::chrono::microseconds> freezing;  ///< These from stats-dump.
  std::optional<std::chrono::microseconds> frozen;
  std::optional<std::uint64_t> pages_written;
  std::vector<InspectedProcess> processes;  ///< Parents before their children.
};

/// Reads what `archive` tells. It may be an archive, an unpacked one, or a plain folder of image files.
/// InvalidArgument, DataLoss: its images are broken.
Result<Inspection> Inspect(const Archive& archive);

/// As `stasis inspect --json` shows it.
nlohmann::json ToJson(const Inspection& found);

}  // namespace stasis::archive
