// Restore: image files become a running tree of processes.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/log.h"
#include "engine/mounts/fill_tmpfs.h"
#include "engine/options.h"

namespace stasis::engine {

struct RestoreRequest {
  /// The process that becomes the root of the tree, as our pid namespace sees it: our placeholder
  /// (`stasis-placeholder hold`), started by a runtime as a container's pid 1 or by SpawnPlaceholder.
  /// It keeps what it is: namespaces, cgroup, descriptors 0 to 2, and no right is added to it.
  pid_t placeholder = 0;

  /// The program `stasis-placeholder` on the host, also used to reserve pids (`last-pid`).
  std::string placeholder_program;

  /// The program `stasis-pages` on the host, for Options::lazy_pages.
  std::string page_server_program;

  Options options;
  Log log;

  /// For each tmpfs that is made again; without it they come back empty.
  FillTmpfs fill_tmpfs;

  std::stop_token stop;
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
};

struct RestoreReport {
  std::chrono::microseconds total{};
  std::uint64_t processes = 0;
  std::uint64_t threads = 0;
  std::uint64_t pages_restored = 0;  ///< By the time that the tree runs.
  std::uint64_t lazy_bytes = 0;      ///< That come while it runs.
  /// What is not as it was, a sentence each (connections that were closed, limits that were lower).
  std::vector<std::string> notes;
};

/// Turns `request.placeholder` into the tree of `source`. On failure the placeholder and all that was
/// made are killed, and nothing else was changed.
///
/// InvalidArgument, DataLoss: the images are no checkpoint, or a broken one. FailedPrecondition: they are
/// of another architecture, CPU or kernel, or a file is missing or another. AlreadyExists: a pid is taken.
/// Unimplemented: they hold a thing that we cannot restore.
Result<RestoreReport> Restore(const RestoreRequest& request, const ImageSource& source);

struct SpawnRequest {
  std::string placeholder_program;
  std::string root = "/";  ///< Directory that becomes its root (chroot(2)).
  bool sibling = false;    ///< A child of the caller's parent, who is to wait for it.
};

/// Starts a placeholder on the host with the pid that the root of `source` had, as a child of the calling
/// process, with its descriptors 0 to 2 and in its namespaces. AlreadyExists: the pid is taken.
Result<pid_t> SpawnPlaceholder(const ImageSource& source, const SpawnRequest& request);

}  // namespace stasis::engine
