// Shared memory that is saved while its processes run: one object for all that map it.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/log.h"
#include "engine/memory/dump_areas.h"
#include "engine/memory/mapping_watch.h"
#include "engine/memory/page_map.h"
#include "engine/memory/page_ranges.h"
#include "engine/memory/system_v.h"
#include "engine/proc/maps.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

/// A shared memory object as maps tells it.
struct ObjectKey {
  std::uint32_t dev_major = 0, dev_minor = 0;
  std::uint64_t inode = 0;

  static ObjectKey Of(const Vma& vma) { return {vma.dev_major, vma.dev_minor, vma.inode}; }
  auto operator<=>(const ObjectKey&) const = default;
};

/// An object whose memory was saved while the tree ran. All ranges are offsets in it.
struct SavedObject {
  ObjectKey key;
  UniqueFd content;  ///< Open to be read.
  PageRanges
      saved;  ///< In the checkpoint that the final one is based on, as of some time or other.
  PageRanges taken;      ///< Of the round that is going on.
  PageRanges removed;    ///< What is not to be believed to be as it was saved.
  bool is_huge = false;  ///< Pages of hugetlb.
  bool is_segment = false;
  SegmentUse use;  ///< Of a segment, before its first page was saved.

  std::uint64_t id() const { return key.inode; }  ///< In the images.
};

/// A process that stands still, with its areas.
struct MappedAreas {
  const FrozenProcess& frozen;
  const std::vector<Area>& areas;
};

/// What is worth it in a tree that runs.
struct SharedCandidates {
  std::set<ObjectKey> objects;
  std::set<pid_t> mappers;  ///< Who maps them.
};
SharedCandidates FindShared(const FrozenTree& look);

class SharedCopy {
 public:
  explicit SharedCopy(std::set<ObjectKey> objects) : wanted_(std::move(objects)) {}
  SharedCopy(const SharedCopy&) = delete;
  SharedCopy& operator=(const SharedCopy&) = delete;
  ~SharedCopy();

  /// A mapper that stands still, with two userfaultfds of its own. Its forks, and what it does to its mappings of the
  /// objects, are seen from here on.
  Status Add(const FrozenProcess& process, std::vector<UniqueFd> userfaultfds);

  /// The tree runs. Objects that are not watched wholly, in all that map them, are left out, and `log` hears why. `tree`: its processes.
  void Begin(const std::set<pid_t>& tree, const Log& log);

  std::list<SavedObject>& objects() { return objects_; }
  std::uint64_t Take(const Log& log);  ///< What is to be saved next, in pages.
  std::uint64_t Keep();  ///< ... is saved; gives the pages that were written meanwhile.

  /// Of the frozen tree, which has `open_files`: what of each object, by its id, is as it was saved.
  std::map<std::uint64_t, PageRanges> Clean(std::span<const MappedAreas> tree,
                                            const std::set<ObjectKey>& open_files, const Log& log);

  /// As WriteTracker::HideFrom, for process `pid`.
  void HideFrom(pid_t pid, Vma& vma) const;

  /// The tree may run: it is watched no longer.
  void End();

 private:
  // A part of an object, where a process maps it.
  struct Mapping {
    ObjectKey key;
    PageRange range;
    std::uint64_t offset = 0;
    bool operator==(const Mapping& other) const;
    bool IsContinuedBy(const PageRange& next, std::uint64_t next_offset) const;
  };
  struct Mapper {
    pid_t pid = 0;
    std::uint64_t start_time = 0;
    UniqueFd proc;
    std::unique_ptr<MappingWatch> watch;
    std::vector<Mapping> mappings;  // that are watched

    std::vector<Mapping> Of(const ObjectKey& key) const;
  };
  template <typename Vmas>
  static std::vector<Mapping> MappingsOf(const Vmas& vmas, const ObjectKey& key);

  Status StartReader();
  void ReadEvents();
  // Forgets objects that do not pass.
  void Forget(const std::function<Status(SavedObject&)>& check, const Log& log);
  Status Watch(const ObjectKey& key, const std::map<const Mapper*, std::vector<Vma>>& smaps);
  static Status WatchIn(Mapper& mapper, const std::vector<Vma>& smaps, const SavedObject& object);
  Status CheckMachine(const std::set<pid_t>& tree, const Log& log);
  Status CheckMappings(pid_t pid, const std::vector<Mapping>& now, const SavedObject& object) const;
  Status CheckEvents(SavedObject& object);
  Status CheckFrozen(std::span<const MappedAreas> tree, const SavedObject& object) const;
  Status ForEachMapping(const SavedObject& object,
                        const std::function<Status(const PageMap&, const Mapping&)>& step) const;
  Result<SegmentUse> UseOf(const SavedObject& object) const;
  const Mapper* Find(pid_t pid) const;

  const std::set<ObjectKey> wanted_;
  std::list<SavedObject> objects_;
  std::list<Mapper> mappers_;
  UniqueFd poll_;  // epoll of all watches, and of ...
  UniqueFd end_;   // ... an eventfd that ends the reader
  std::jthread reader_;
};

}  // namespace stasis::engine
