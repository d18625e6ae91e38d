// The bulk of a tree's memory, saved while it runs, so that it need stand still only for what changed since.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/dump.h"
#include "engine/image/image_io.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/write_tracker.h"
#include "engine/pre_copy_shared.h"
#include "engine/proc/maps.h"
#include "engine/tracee/frozen_tree.h"
#include "engine/tracee/waits.h"

namespace stasis::engine {

/// A process that was looked at while it ran, and of whose memory some may be saved.
struct SavedProcess {
  pid_t pid = 0;                 ///< As we see it.
  std::uint64_t id = 0;          ///< In the images: the pid that it has itself.
  std::uint64_t start_time = 0;  ///< TaskStat's, against a pid that is used again.
  UniqueFd proc;                 ///< Directory /proc/PID.
  UniqueFd memory;               ///< /proc/PID/mem, of the address space that it had then.
  /// None where nothing of its own memory is saved.
  std::optional<WriteTracker> tracker;
  PageRanges
      saved;  ///< In the checkpoint that the final one is based on, as of some time or other.
  PageRanges taken;       ///< Of the round that is going on.
  std::vector<Vma> vmas;  ///< Its smaps, after the last round.
  bool vmas_used = false;
};

class PreCopy {
 public:
  /// Saves memory of the tree in rounds, each a checkpoint that the next is based on
  /// (ImageSink::BeginIncrement), until what is written meanwhile is little or does not get less. Gives no
  /// processes when it would not pay, or cannot be: then nothing was put into `sink`. Errors are those of the
  /// sink, and of a dump that is not wanted any more. The tree stands still for moments, which `report`
  /// counts.
  static Result<PreCopy> Run(const DumpRequest& request, ImageSink& sink, DumpReport& report);

  /// Memory of processes that were not worth it, bytes: some of what is left to be copied of a frozen tree.
  std::uint64_t rest_bytes() const { return rest_bytes_; }

  std::size_t rest_processes() const { return rest_processes_; }

  /// Null when nothing of its own memory was saved.
  const SavedProcess* Find(const FrozenProcess& process) const;

  /// Of the frozen tree, which has `open_files`: what of each shared memory object, by its id, is in the checkpoint that this one is based on.
  std::map<std::uint64_t, PageRanges> CleanObjects(std::span<const MappedAreas> tree,
                                                   const std::set<ObjectKey>& open_files,
                                                   const Log& log);

  /// The stops that this took.
  EarlierStops& earlier_stops() { return earlier_stops_; }

  /// The areas of a process that stands still, as smaps tells them. Of one that is to run on, what smaps had
  /// told before is believed where maps has not changed: the kernel looks at every page for smaps (20 ms for
  /// 1 GiB), and only what was told of the pages is left out of maps, and flags.
  Result<std::vector<Vma>> ReadVmas(const FrozenProcess& process, Fate fate);

  /// After the tree runs again. Unavailable: flags of an area that ReadVmas gave, or of a part, are others now, so
  /// that nobody knows which it had when the tree stood still. They change by madvise(2), mlock(2) and the like.
  Status CheckAdvices();

  /// The tree may run: it is watched no longer.
  void End();

 private:
  SavedProcess* FindOurs(const FrozenProcess& process);
  Status Begin(const DumpRequest& request, DumpReport& report);
  void HideFrom(const SavedProcess& process, Vma& vma) const;
  std::uint64_t Take(const Log& log);  // what is to be saved next, in pages
  void LookAtOthers(const DumpRequest& request);
  std::uint64_t Keep();  // ... is saved; gives the pages that were written meanwhile

  EarlierStops earlier_stops_;
  std::list<SavedProcess> processes_;
  std::unique_ptr<SharedCopy> shared_;  // null where there is nothing of it
  std::uint64_t rest_bytes_ = 0;
  std::size_t rest_processes_ = 0;
};

}  // namespace stasis::engine
