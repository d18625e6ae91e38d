// Memory content: found by the page tables, streamed into the sink.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/dump.h"
#include "engine/held_sink.h"
#include "engine/memory/dump_areas.h"
#include "engine/memory/page_copy.h"
#include "engine/memory/page_map.h"
#include "engine/memory/page_runs.h"
#include "engine/pre_copy.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

/// First finds what there is (Add), then streams it (WritePages); the tree stands still from the
/// first Add to the end of WritePages. What it holds grows with the number of page runs, not of
/// pages.
class MemoryDumper {
 public:
  MemoryDumper(const DumpRequest& request, DumpReport& report)
      : request_(request), report_(report) {}

  /// A process with its areas.
  struct Process {
    const FrozenProcess& frozen;
    std::vector<Area>& areas;
    std::vector<std::uint64_t>
        stack_pointers;  ///< Of its threads; a lazy restore brings those pages at once.
    const SavedProcess* saved =
        nullptr;  ///< What the checkpoint that this one is based on has of it.
  };
  /// What of shared memory objects, by id, is in the checkpoint that this one is based on; before they are added.
  void SetClean(std::map<std::uint64_t, PageRanges> objects) {
    clean_objects_ = std::move(objects);
  }

  /// Finds the pages of `processes` in their areas, and puts the guard areas behind them as images know
  /// them.
  Status Add(std::span<const Process> processes);

  /// Adds shared memory object or memory file `id`, open to be read as `fd`, unless it is there.
  Status AddObject(std::uint64_t id, UniqueFd fd);
  /// The same of one that stays open as `fd` until the pages are written, and is opened again for the moments in
  /// which it is read: for its offset, which looking for data moves.
  Status AddBorrowed(std::uint64_t id, int fd);

  /// pages-N.img of every process and every shared memory object. Those that `sink` holds are filled by two
  /// threads.
  Status WritePages(HeldSink& sink);
  /// pagemap-PID.img and pagemap-shmem-ID.img; the tree may run.
  Status WritePageMaps(ImageSink& sink) const;

 private:
  struct Run : PageRun {
    bool copied_on_write = false;
  };
  struct Content {
    pid_t pid = 0;         // of a process, as we see it; 0 for an object
    UniqueFd memory;       // /proc/PID/mem, or the shared memory object ...
    int borrowed = -1;     // ... which may be open in another place
    std::uint64_t id = 0;  // pid in the images, or the object's inode
    std::uint32_t pages_id = 0;
    std::vector<Run> runs;

    void Add(PageRange pages, std::uint32_t flags, bool copied_on_write);
    std::uint64_t page_count() const;  // that are present
  };

  // What a scan finds, by any thread of ours.
  struct Found {
    const Process* process;
    Content content = {};
    PageRanges guards = {};
    PageCounts pages = {};
  };
  static Status Scan(Found& found);
  static void AddArea(const Area& area, PageRanges content, const PageRanges& in_parent,
                      Found& found);
  struct Held {
    const Content* content;
    std::span<std::byte> room;
  };
  static Result<PageReader> ReaderOf(const Content& content, UniqueFd& again);
  Status WriteOthers(std::span<const Content* const> contents, ImageSink& sink);
  Status Progress(std::uint64_t bytes);

  const DumpRequest& request_;
  DumpReport& report_;
  std::vector<Content> processes_;
  std::map<std::uint64_t, Content> objects_;  // by id
  std::map<std::uint64_t, PageRanges> clean_objects_;
  std::uint32_t next_pages_id_ = 1;
  std::uint64_t total_bytes_ = 0, done_bytes_ = 0;
};

}  // namespace stasis::engine
