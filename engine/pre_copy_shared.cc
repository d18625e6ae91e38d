// Source  mm/shmem.c, mm/mremap.c, fs/userfaultfd.c, shmctl(2); decision 15; tested on 6.18
// Rule    Pages are write-protected in page tables, of which each process has its own. So an object is saved only
//         while every mapping of it, anywhere on the machine, is watched from before the first copy until the tree
//         stands still; what was written is what was written through any of them.
// Rule    Memory of mmap(2) MAP_SHARED | MAP_ANONYMOUS has no descriptor: a new mapping of it comes by fork(2) or
//         mremap(2) from one that is there, which is seen, or by opening /proc/PID/map_files, which only
//         CAP_CHECKPOINT_RESTORE on the whole machine allows.
// Rule    A memfd can be written to, and mapped anew, by whoever holds a descriptor, and nothing tells of that: it
//         is never saved so.
// Rule    A System V segment counts its mappings (shm_nattch) and tells when the last one came and went, in
//         seconds: mmap(2) of the kernel's calls shm_open() and shm_close() for each (ipc/shm.c).
// Rule    mremap(2) can extend a mapping at its place and take that back unseen. Where all of the object is mapped
//         there is nothing to extend it to.
// Rule    Asynchronous I/O writes to what was pinned before, whoever maps it by then.
#include "engine/pre_copy_shared.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>
#include <optional>
#include <ranges>

#include "engine/base/io.h"
#include "engine/memory/machine_maps.h"
#include "engine/memory/object_pages.h"
#include "engine/memory/page_map.h"
#include "engine/memory/system_v.h"

namespace stasis::engine {
namespace {

// As for private memory (pre_copy.cc).
constexpr std::uint64_t kWorthwhileBytes = std::uint64_t{16} << 20;
constexpr std::size_t kMostMappers = 128;
// Of page tables that the watch of an object makes where a process has none, charged to its container: a part of
// its size, but no less and no more than this.
constexpr std::uint64_t kPartOfTables = 32;
constexpr std::uint64_t kFewTableBytes = std::uint64_t{4} << 20;
constexpr std::uint64_t kMostTableBytes = std::uint64_t{64} << 20;
constexpr std::uint64_t kBytesOfTable = std::uint64_t{2} << 20;  // of memory, told by one page

constexpr std::string_view kAioRing = "/[aio] (deleted)";

bool HasRing(std::string_view maps) {
  return maps.find(kAioRing) != maps.npos || maps.find(kRingLink) != maps.npos;
}

bool IsSegment(const Vma& vma) { return vma.path.starts_with("/SYSV"); }

// What ClassifyAreas calls shared and anonymous, files and descriptors excluded.
bool CanBeSaved(const Vma& vma) {
  return vma.shared &&
         (vma.path == "/dev/zero (deleted)" || vma.path.starts_with("[anon_shmem:") ||
          vma.path == "/anon_hugepage (deleted)" || (IsSegment(vma) && vma.offset == 0));
}

// That the object has, whoever has it in page tables; swapped out ones too.
std::uint64_t BytesOfObject(const FrozenProcess& process, const Vma& vma) {
  constexpr std::uint64_t kBlockBytes = 512;
  const std::string link = Area{.vma = vma, .entry = {}}.LinkName();
  struct stat st = {};
  if (::fstatat(process.proc.get(), link.c_str(), &st, 0) != 0) return 0;
  return static_cast<std::uint64_t>(st.st_blocks) * kBlockBytes;
}

Status Refuse(std::string_view why) { return FailedPrecondition(why); }

std::string Pid(pid_t pid) { return "pid " + std::to_string(pid); }

// All that is mapped must be of the one object that can be saved.
Status CheckKinds(const std::vector<const Vma*>& vmas) {
  const bool is_segment = IsSegment(*vmas.front());
  const bool all = std::ranges::all_of(
      vmas, [&](const Vma* vma) { return CanBeSaved(*vma) && IsSegment(*vma) == is_segment; });
  return all ? OkStatus() : Refuse("a file of the same number, or a part of it, is mapped too");
}

std::int64_t SecondNow() {
  timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec;
}

Status RingIn(pid_t pid) { return Refuse(Pid(pid) + " has asynchronous I/O"); }

void Tell(const ObjectKey& key, const Status& status, const Log& log) {
  log.Info("shared memory " + std::to_string(key.inode) +
           " is saved while the tree stands still: " + Message(status));
}

// The page tables that watching `vmas` makes.
Status CheckTables(const std::vector<const Vma*>& vmas) {
  std::uint64_t bytes = 0, largest = 0;
  for (const Vma* vma : vmas) {
    largest = std::max(largest, vma->size());
    if (vma->Has("ht")) continue;
    bytes += (vma->size() - std::min(vma->size(), vma->resident)) / kBytesOfTable * kPageBytes;
  }
  const std::uint64_t most = std::clamp(largest / kPartOfTables, kFewTableBytes, kMostTableBytes);
  return bytes <= most ? OkStatus() : Refuse("many processes map it that have little of it");
}

// The offsets of `addresses`, which lie in `range`, of a mapping that begins at `offset`.
PageRanges ToOffsets(const PageRanges& addresses, const PageRange& range, std::uint64_t offset) {
  PageRanges offsets;
  for (const PageRange& part : Within(addresses, range)) {
    Append(offsets, {part.start - range.start + offset, part.end - range.start + offset});
  }
  return offsets;
}

}  // namespace

SharedCandidates FindShared(const FrozenTree& look) {
  std::map<pid_t, std::vector<Vma>> maps;
  SharedCandidates found;
  for (const FrozenProcess& process : look.processes()) {
    if (process.zombie) continue;
    std::vector<Vma> vmas = ReadMaps(process.proc.get()).value_or(std::vector<Vma>());
    std::erase_if(vmas, [](const Vma& vma) { return !CanBeSaved(vma); });
    if (vmas.empty()) continue;
    for (const Vma& vma : vmas) {
      const ObjectKey key = ObjectKey::Of(vma);
      if (vma.size() < kWorthwhileBytes || found.objects.contains(key)) continue;
      if (BytesOfObject(process, vma) >= kWorthwhileBytes) found.objects.insert(key);
    }
    maps.emplace(process.pid, std::move(vmas));
  }
  for (const auto& [pid, vmas] : maps) {
    for (const Vma& vma : vmas) {
      if (found.objects.contains(ObjectKey::Of(vma))) found.mappers.insert(pid);
    }
  }
  if (found.mappers.size() > kMostMappers) return {};
  return found;
}

bool SharedCopy::Mapping::operator==(const Mapping& other) const {
  return key == other.key && range.start == other.range.start && range.end == other.range.end &&
         offset == other.offset;
}

bool SharedCopy::Mapping::IsContinuedBy(const PageRange& next, std::uint64_t next_offset) const {
  return range.end == next.start && offset + (range.end - range.start) == next_offset;
}

// Areas that mprotect(2) has split are one mapping.
template <typename Vmas>
std::vector<SharedCopy::Mapping> SharedCopy::MappingsOf(const Vmas& vmas, const ObjectKey& key) {
  std::vector<Mapping> mappings;
  for (const Vma& vma : vmas) {
    if (!vma.shared || ObjectKey::Of(vma) != key) continue;
    const PageRange range = {vma.start, vma.end};
    if (!mappings.empty() && mappings.back().IsContinuedBy(range, vma.offset)) {
      mappings.back().range.end = range.end;
    } else {
      mappings.push_back({.key = key, .range = range, .offset = vma.offset});
    }
  }
  return mappings;
}

std::vector<SharedCopy::Mapping> SharedCopy::Mapper::Of(const ObjectKey& key) const {
  std::vector<Mapping> ours;
  std::ranges::copy_if(mappings, std::back_inserter(ours),
                       [&](const Mapping& mapping) { return mapping.key == key; });
  return ours;
}

SharedCopy::~SharedCopy() {
  if (!reader_.joinable()) return;
  // Who waits for an event waits until the descriptors are closed, right after this.
  (void)::eventfd_write(end_.get(), 1);
  reader_.join();
}

Status SharedCopy::Add(const FrozenProcess& process, std::vector<UniqueFd> userfaultfds) {
  if (!reader_.joinable()) RETURN_IF_ERROR(StartReader());
  Mapper mapper;
  mapper.pid = process.pid;
  mapper.start_time = process.stat.start_time;
  ASSIGN_OR_RETURN(mapper.proc, OpenAt(process.proc.get(), ".", O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(const std::vector<Vma> vmas, ReadMaps(process.proc.get()));
  ASSIGN_OR_RETURN(mapper.watch, MappingWatch::Begin(std::move(userfaultfds.at(0)),
                                                     std::move(userfaultfds.at(1)), vmas));
  for (const Vma& vma : vmas) {
    if (vma.shared && wanted_.contains(ObjectKey::Of(vma))) mapper.watch->Watch(vma);
  }
  // It stays, whatever happens: the reader may be told of it.
  const Mapper& added = mappers_.emplace_back(std::move(mapper));
  for (const int fd : added.watch->descriptors()) {
    epoll_event event = {.events = EPOLLIN, .data = {.ptr = added.watch.get()}};
    if (::epoll_ctl(poll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      return SyscallError(errno, "epoll_ctl ADD userfaultfd");
    }
  }
  return OkStatus();
}

Status SharedCopy::StartReader() {
  poll_.Reset(::epoll_create1(EPOLL_CLOEXEC));
  end_.Reset(::eventfd(0, EFD_CLOEXEC));
  epoll_event event = {.events = EPOLLIN, .data = {.ptr = nullptr}};
  if (!poll_ || !end_ || ::epoll_ctl(poll_.get(), EPOLL_CTL_ADD, end_.get(), &event) != 0) {
    return SyscallError(errno, "epoll of an eventfd");
  }
  reader_ = std::jthread([this] { ReadEvents(); });
  return OkStatus();
}

void SharedCopy::ReadEvents() {
  std::array<epoll_event, 16> events;
  while (true) {
    const int count = ::epoll_wait(poll_.get(), events.data(), events.size(), -1);
    for (int i = 0; i < count; ++i) {
      void* const watch = events[static_cast<std::size_t>(i)].data.ptr;
      if (watch == nullptr) return;
      static_cast<MappingWatch*>(watch)->ReadEvents();
    }
  }
}

void SharedCopy::Forget(const std::function<Status(SavedObject&)>& check, const Log& log) {
  objects_.remove_if([&](SavedObject& object) {
    const Status status = check(object);
    if (!status.ok()) Tell(object.key, status, log);
    return !status.ok();
  });
}

void SharedCopy::Begin(const std::set<pid_t>& tree, const Log& log) {
  std::map<const Mapper*, std::vector<Vma>> smaps;
  for (const Mapper& mapper : mappers_) {
    Result<std::vector<Vma>> vmas = ReadSmaps(mapper.proc.get());
    if (vmas.ok()) smaps[&mapper] = *std::move(vmas);
  }
  for (const ObjectKey& key : wanted_) {
    const Status status = Watch(key, smaps);
    if (!status.ok()) Tell(key, status, log);
  }
  const Status status = objects_.empty() ? OkStatus() : CheckMachine(tree, log);
  if (status.ok()) return;
  Forget([&](SavedObject&) { return status; }, log);
}

Status SharedCopy::Watch(const ObjectKey& key,
                         const std::map<const Mapper*, std::vector<Vma>>& smaps) {
  SavedObject object;
  object.key = key;
  std::vector<const Vma*> all;
  for (const auto& [mapper, vmas] : smaps) {
    for (const Vma& vma : vmas) {
      if (!vma.shared || ObjectKey::Of(vma) != key) continue;
      all.push_back(&vma);
      if (object.content) continue;
      const std::string link = Area{.vma = vma, .entry = {}}.LinkName();
      ASSIGN_OR_RETURN(object.content, OpenAt(mapper->proc.get(), link, O_RDONLY));
    }
  }
  if (all.empty()) return Refuse("nobody maps it any more");
  RETURN_IF_ERROR(CheckKinds(all));
  RETURN_IF_ERROR(CheckTables(all));
  object.is_segment = IsSegment(*all.front());
  object.is_huge = all.front()->Has("ht");
  for (Mapper& mapper : mappers_) {
    const auto vmas = smaps.find(&mapper);
    if (vmas == smaps.end()) continue;
    RETURN_IF_ERROR(Annotate(WatchIn(mapper, vmas->second, object), Pid(mapper.pid)));
  }
  if (object.is_segment) {
    const std::int64_t now = SecondNow();
    ASSIGN_OR_RETURN(object.use, UseOf(object));
    if (object.use.last_change >= now) return Refuse("it was attached to a moment ago");
    if (object.use.mappings != all.size()) return Refuse("others are attached to it too");
  }
  objects_.push_back(std::move(object));
  return OkStatus();
}

Status SharedCopy::WatchIn(Mapper& mapper, const std::vector<Vma>& smaps,
                           const SavedObject& object) {
  struct stat st = {};
  if (::fstat(object.content.get(), &st) != 0) return SyscallError(errno, "fstat of it");
  const auto size = static_cast<std::uint64_t>(st.st_size);
  PageRanges whole;
  for (const Vma& vma : smaps) {
    if (!vma.shared || ObjectKey::Of(vma) != object.key) continue;
    if (!mapper.watch->Watches(vma)) {
      return Refuse("cannot be watched, has a userfaultfd itself, or was mapped anew");
    }
    whole = Unite(whole, {{vma.offset, vma.offset + vma.size()}});
  }
  if (whole.empty()) return OkStatus();
  std::ranges::move(MappingsOf(smaps, object.key), std::back_inserter(mapper.mappings));
  if (mapper.watch->MissesForks(smaps)) return Refuse("its forks cannot be seen");
  const bool all = whole.size() == 1 && whole.front().start == 0 && whole.front().end >= size;
  return all ? OkStatus() : Refuse("it maps a part of it only");
}

Status SharedCopy::CheckMachine(const std::set<pid_t>& tree, const Log& log) {
  std::vector<pid_t> pids;
  for (const Mapper& mapper : mappers_) pids.push_back(mapper.pid);
  return ForEachMaps(pids, [&](pid_t pid, const std::string& text) -> Status {
    if (tree.contains(pid) && HasRing(text)) return RingIn(pid);
    std::optional<std::vector<Vma>> vmas;
    const auto check = [&](const SavedObject& object) -> Status {
      // Of another IPC namespace's segments the numbers are the same; who is attached is known.
      const std::string number = " " + std::to_string(object.key.inode) + " ";
      const bool maps = text.find(number) != std::string::npos;
      if (object.is_segment || (!maps && Find(pid) == nullptr)) return OkStatus();
      if (!vmas) {
        ASSIGN_OR_RETURN(vmas, ParseMaps(text));
      }
      return CheckMappings(pid, MappingsOf(*vmas, object.key), object);
    };
    Forget(check, log);
    return OkStatus();
  });
}

Status SharedCopy::CheckMappings(pid_t pid, const std::vector<Mapping>& now,
                                 const SavedObject& object) const {
  const Mapper* const mapper = Find(pid);
  if (mapper == nullptr) return now.empty() ? OkStatus() : Refuse(Pid(pid) + " maps it too");
  return now == mapper->Of(object.key) ? OkStatus() : Refuse(Pid(pid) + " has mapped it anew");
}

Status SharedCopy::CheckEvents(SavedObject& object) {
  for (const Mapper& mapper : mappers_) {
    const std::vector<Mapping> mappings = mapper.Of(object.key);
    if (mappings.empty()) continue;
    const MappingWatch::Seen seen = mapper.watch->seen();
    if (seen.lost) return Refuse(Pid(mapper.pid) + " cannot be watched any more");
    if (seen.forked) return Refuse(Pid(mapper.pid) + " has forked");
    if (seen.moved) return Refuse(Pid(mapper.pid) + " has moved shared memory");
    for (const Mapping& mapping : mappings) {
      object.removed =
          Unite(object.removed, ToOffsets(seen.removed, mapping.range, mapping.offset));
    }
  }
  return OkStatus();
}

std::uint64_t SharedCopy::Take(const Log& log) {
  std::uint64_t count = 0;
  const auto take = [&](SavedObject& object) -> Status {
    RETURN_IF_ERROR(CheckEvents(object));
    PageRanges written;
    RETURN_IF_ERROR(
        ForEachMapping(object, [&](const PageMap& map, const Mapping& mapping) -> Status {
          // remap_file_pages(2) there and back, with a write in between, leaves nothing else behind.
          if (!map.IsWatched(mapping.range.start, mapping.range.end)) {
            return Refuse("a part of it was mapped anew");
          }
          ASSIGN_OR_RETURN(const PageRanges found,
                           map.TakeAll(mapping.range.start, mapping.range.end));
          written = Unite(written, ToOffsets(found, mapping.range, mapping.offset));
          return OkStatus();
        }));
    ASSIGN_OR_RETURN(const PageRanges there, PagesOfObject(object.content.get()));
    object.taken = Intersect(written, there);
    count += PageCount(object.taken);
    return OkStatus();
  };
  Forget(take, log);
  return count;
}

std::uint64_t SharedCopy::Keep() {
  std::uint64_t count = 0;
  for (SavedObject& object : objects_) {
    object.saved = Unite(object.saved, std::exchange(object.taken, {}));
    PageRanges written;
    // An estimate: what goes wrong is found when the tree stands still.
    (void)ForEachMapping(object, [&](const PageMap& map, const Mapping& mapping) -> Status {
      ASSIGN_OR_RETURN(const PageRanges found, map.Written(mapping.range.start, mapping.range.end));
      written = Unite(written, ToOffsets(found, mapping.range, mapping.offset));
      return OkStatus();
    });
    count += PageCount(written);
  }
  return count;
}

std::map<std::uint64_t, PageRanges> SharedCopy::Clean(std::span<const MappedAreas> tree,
                                                      const std::set<ObjectKey>& open_files,
                                                      const Log& log) {
  std::map<std::uint64_t, PageRanges> clean;
  const auto find = [&](SavedObject& object) -> Status {
    if (open_files.contains(object.key)) return Refuse("it is open as a file");
    RETURN_IF_ERROR(CheckFrozen(tree, object));
    RETURN_IF_ERROR(CheckEvents(object));
    PageRanges changed = object.removed;
    RETURN_IF_ERROR(
        ForEachMapping(object, [&](const PageMap& map, const Mapping& mapping) -> Status {
          ASSIGN_OR_RETURN(const PageRanges found,
                           map.Unwritten(mapping.range.start, mapping.range.end, object.is_huge));
          changed = Unite(
              changed, ToOffsets(Subtract({mapping.range}, found), mapping.range, mapping.offset));
          return OkStatus();
        }));
    clean[object.id()] = Subtract(object.saved, changed);
    return OkStatus();
  };
  Forget(find, log);
  return clean;
}

Status SharedCopy::CheckFrozen(std::span<const MappedAreas> tree, const SavedObject& object) const {
  const auto vmas = [](const MappedAreas& process) {
    return process.areas | std::views::transform(&Area::vma);
  };
  for (const Mapper& mapper : mappers_) {
    if (mapper.Of(object.key).empty()) continue;
    const auto found = std::ranges::find_if(tree, [&](const MappedAreas& process) {
      return process.frozen.pid == mapper.pid &&
             process.frozen.stat.start_time == mapper.start_time;
    });
    if (found == tree.end()) return Refuse(Pid(mapper.pid) + " has ended");
    ASSIGN_OR_RETURN(const PageMap map, PageMap::Open(mapper.proc.get()));
    if (!mapper.watch->StillSeesForks(map))
      return Refuse("forks of " + Pid(mapper.pid) + " were not seen");
  }
  for (const MappedAreas& process : tree) {
    const pid_t pid = process.frozen.pid;
    RETURN_IF_ERROR(CheckMappings(pid, MappingsOf(vmas(process), object.key), object));
    const bool has_ring = std::ranges::any_of(process.areas, [](const Area& area) {
      return area.Is(kAreaAioRing) || area.Is(kAreaPlugin);
    });
    if (has_ring) return RingIn(pid);
  }
  if (!object.is_segment) return OkStatus();
  ASSIGN_OR_RETURN(const SegmentUse now, UseOf(object));
  return now == object.use ? OkStatus() : Refuse("somebody attached to it");
}

Status SharedCopy::ForEachMapping(
    const SavedObject& object,
    const std::function<Status(const PageMap&, const Mapping&)>& step) const {
  for (const Mapper& mapper : mappers_) {
    const std::vector<Mapping> mappings = mapper.Of(object.key);
    if (mappings.empty()) continue;
    ASSIGN_OR_RETURN(const PageMap map, PageMap::Open(mapper.proc.get()));
    for (const Mapping& mapping : mappings)
      RETURN_IF_ERROR(Annotate(step(map, mapping), Pid(mapper.pid)));
  }
  return OkStatus();
}

Result<SegmentUse> SharedCopy::UseOf(const SavedObject& object) const {
  for (const Mapper& mapper : mappers_) {
    if (!mapper.Of(object.key).empty()) {
      return ReadSegmentUse(mapper.pid, static_cast<int>(object.key.inode));
    }
  }
  return NotFound("nobody maps it");
}

const SharedCopy::Mapper* SharedCopy::Find(pid_t pid) const {
  const auto found = std::ranges::find(mappers_, pid, &Mapper::pid);
  return found == mappers_.end() ? nullptr : &*found;
}

void SharedCopy::HideFrom(pid_t pid, Vma& vma) const {
  const Mapper* const mapper = Find(pid);
  if (mapper != nullptr) mapper->watch->HideFrom(vma);
}

void SharedCopy::End() {
  for (const Mapper& mapper : mappers_) {
    mapper.watch->End(ReadMaps(mapper.proc.get()).value_or(std::vector<Vma>()));
  }
}

}  // namespace stasis::engine
