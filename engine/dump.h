// Dump: a running tree of processes becomes image files.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/log.h"
#include "engine/mounts/mount_changes.h"
#include "engine/options.h"

namespace stasis::engine {

/// What becomes of the tree once it is dumped. On any failure it runs on.
enum class Fate { kLeaveRunning, kLeaveStopped, kKill };

struct DumpReport;

struct DumpRequest {
  pid_t root = 0;  ///< Root of the tree, as the caller's pid namespace sees it.
  Fate fate = Fate::kLeaveRunning;

  Options options;
  Log log;

  /// For CRIU, which makes all other mounts anew; unset: none of them. A restore of ours makes those that
  /// `compare_mounts` calls made inside; without it none.
  OutsideMounts outside_mounts;

  /// Called while the tree stands still, when it has a mount namespace of its own. An error ends the dump.
  CompareMounts compare_mounts;

  /// Ends the dump early with Cancelled; the tree runs on.
  std::stop_token stop;
  /// The tree runs on and DeadlineExceeded is given when the dump has not ended by then.
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();

  /// Called while the tree stands still, after its memory was read; for what must be consistent with
  /// it (the root file system). An error ends the dump. `others`: a process of each mount namespace that is not the
  /// root's, and whose root directory is that of its process.
  std::function<Status(std::span<const pid_t> others)> while_frozen;

  /// Called once the sink has taken the last image file, before a tree is killed or left stopped: what
  /// makes the checkpoint durable. On error the tree runs on. The report is whole but for the end of
  /// `frozen` where the tree stands still until it is killed or left stopped.
  std::function<Status(const DumpReport& report)> commit;

  /// Called now and then with bytes of memory read so far and in all.
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;

  /// Called when the tree stands still, and when it runs again, with the time in which it stood still before
  /// that. Not called at the end of a dump that fails.
  std::function<void(bool stands_still, std::chrono::microseconds so_far)> stop_changed;
};

/// The times in which a tree stood still: from its first task's stop until the last one ran again. There are
/// several where memory was saved while it ran.
struct Stops {
  std::uint64_t count = 0;
  std::chrono::microseconds longest{};
  std::chrono::microseconds total{};

  void Add(std::chrono::steady_clock::duration time);
};

/// Pages of 4096 bytes.
struct PageCounts {
  std::uint64_t scanned = 0;
  std::uint64_t written = 0;    ///< While the tree stood still.
  std::uint64_t in_parent = 0;  ///< Which were saved while it ran, and not written since.

  PageCounts& operator+=(const PageCounts& other) {
    scanned += other.scanned;
    written += other.written;
    in_parent += other.in_parent;
    return *this;
  }
};

struct DumpReport {
  std::chrono::microseconds freezing{};  ///< From the first interrupt until all tasks stand still.
  Stops stops;
  std::chrono::microseconds memory{};  ///< Part of `frozen` in which memory was read and written.
  std::uint64_t processes = 0;
  std::uint64_t threads = 0;
  PageCounts process_pages, object_pages;  ///< Of processes; of memory that several may map.
  std::uint64_t pages_copied_before = 0;   ///< While it ran, in all rounds.
  std::uint64_t image_bytes = 0;
  /// What a restore will not bring back, a sentence each ("pid 7 fd 5: TCP 10.0.0.1:80 to …").
  std::vector<std::string> notes;

  PageCounts pages() const { return PageCounts(process_pages) += object_pages; }

  /// The file `stats-dump`, as CRIU writes it.
  std::string StatsImage() const;
};

/// Writes the image files of the tree under `request.root` into `sink`, and leaves the tree as
/// `request.fate` says. Besides CRIU's files there is `descriptors.json` (what the root's descriptors
/// 0, 1 and 2 were), which runc and crun expect. The inventory comes last.
///
/// NotFound: no such process. Unimplemented: the tree holds a thing that we cannot restore; the message
/// names pid, descriptor and thing, and nothing was changed. PermissionDenied, Cancelled,
/// DeadlineExceeded, ResourceExhausted as their names say. Whatever the result, the tree runs on unless
/// the dump was good and its fate another.
///
/// Blocks its thread, which becomes the tracer (ptrace(2)) for that time.
Result<DumpReport> Dump(const DumpRequest& request, ImageSink& sink);

}  // namespace stasis::engine
