// Source  Documentation/admin-guide/mm/userfaultfd.rst, pagemap.rst; mm/gup.c; tested on 6.18
// Rule    What the kernel or a device writes through pinned pages (a read(2) with O_DIRECT, a file system of
//         FUSE) is seen as written when it is pinned, not when it is written. So no page is copied before every
//         thread has stood still once since it was taken: such calls end before their thread stops. Rings of
//         asynchronous I/O do not; a process that has one is left to the frozen copy.
// Rule    A page that went away while it was copied is saved as zeros: it is not clean when the tree stands
//         still, so that nobody asks for it.
// Rule    /proc/PID/mem stays with the address space that it was opened for; a pid may be another process's
//         by now.
#include "engine/pre_copy.h"

#include <fcntl.h>

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "engine/base/io.h"
#include "engine/dump_check.h"
#include "engine/dump_watch.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/inventory.pb.h"
#include "engine/memory/page_copy.h"
#include "engine/memory/page_map.h"
#include "engine/memory/page_runs.h"
#include "engine/memory/userfault.h"
#include "engine/proc/maps.h"
#include "engine/proc/task.h"
#include "engine/proc/text.h"
#include "engine/tasks/dump_tree.h"

namespace stasis::engine {
namespace {

using std::chrono::steady_clock;

// Of a tree: less is copied in the time of the two short stops that this takes. Of a process: less in the time in
// which its memory is put under watch.
constexpr std::uint64_t kWorthwhileBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kWorthwhileOfOne = std::uint64_t{4} << 20;
constexpr int kMostRounds = 8;
constexpr std::uint64_t kFewPages = 1024;  // copied in some 2 ms

// Anonymous memory of `process`, bytes; more or less, as the kernel counts it.
std::uint64_t AnonymousBytes(const FrozenProcess& process) {
  const Result<std::string> text = ReadFileAt(process.proc.get(), "statm");
  if (!text.ok()) return 0;
  const std::vector<std::string_view> words = text::Words(*text);
  if (words.size() < 3) return 0;
  const auto resident = text::Number<std::uint64_t>(words[1]);
  const auto of_files = text::Number<std::uint64_t>(words[2]);
  return resident.ok() && of_files.ok() && *resident > *of_files
             ? (*resident - *of_files) * kPageBytes
             : 0;
}

struct Candidates {
  std::set<pid_t> tree;          // as it runs
  std::set<pid_t> pids;          // that are worth it
  std::uint64_t rest_bytes = 0;  // of anonymous memory that the others have
  std::size_t others = 0;
  SharedCandidates shared;

  bool none() const { return pids.empty() && shared.objects.empty(); }
};

Candidates FindCandidates(pid_t root) {
  Candidates found;
  const Result<FrozenTree> tree = FrozenTree::Look(root);
  if (!tree.ok()) return found;
  std::uint64_t worthwhile = 0;
  for (const FrozenProcess& process : tree->processes()) {
    if (process.zombie) continue;
    found.tree.insert(process.pid);
    const std::uint64_t bytes = AnonymousBytes(process);
    if (bytes >= kWorthwhileOfOne) {
      found.pids.insert(process.pid);
      worthwhile += bytes;
    } else {
      found.rest_bytes += bytes;
      ++found.others;
    }
  }
  if (worthwhile < kWorthwhileBytes) {
    found.rest_bytes += worthwhile;
    found.others += std::exchange(found.pids, {}).size();
  }
  found.shared = FindShared(*tree);
  return found;
}

bool CanBeDumped(const DumpRequest& request) {
  const Result<DumpCheck> check = CheckDump(request.root, request.options, {}, MemoryLook::kQuick);
  const bool can = check.ok() && check->obstacles.empty();
  if (!can) {
    request.log.Info(
        "no memory is saved while the tree runs, for it seems that it cannot be saved: " +
        (check.ok() ? check->obstacles.front() : Message(check.status())));
  }
  return can;
}

// Stops the whole tree for a moment.
Status StandStill(const DumpRequest& request, DumpReport& report, EarlierStops& earlier,
                  const std::function<void(FrozenTree&)>& meanwhile = {}) {
  ASSIGN_OR_RETURN(FrozenTree tree,
                   FrozenTree::Freeze(request.root, request.deadline, request.stop, &earlier));
  if (meanwhile) meanwhile(tree);
  const auto first_stop = tree.first_stop();
  const Status status = tree.Thaw();
  report.stops.Add(steady_clock::now() - first_stop);
  if (request.stop_changed) request.stop_changed(false, report.stops.total);
  return status;
}

void Watch(SavedProcess& process) {
  if (!process.tracker) return;
  const Result<std::vector<Vma>> vmas = ReadMaps(process.proc.get());
  if (!vmas.ok()) return;
  const auto is_ring = [](const Vma& vma) {
    return vma.path == "/[aio] (deleted)" || vma.path == kRingLink;
  };
  if (std::ranges::any_of(*vmas, is_ring)) return;
  for (const Vma& vma : *vmas) process.tracker->Watch(vma);
}

// `shared`: null where none of the process is to be saved.
Result<SavedProcess> BeginOne(FrozenProcess& process, bool own, SharedCopy* shared,
                              const Log& log) {
  SavedProcess saved;
  saved.pid = process.pid;
  saved.id = static_cast<std::uint64_t>(process.ns_pid);
  saved.start_time = process.stat.start_time;
  ASSIGN_OR_RETURN(saved.proc, OpenAt(process.proc.get(), ".", O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(saved.memory, OpenAt(process.proc.get(), "mem", O_RDONLY));
  ASSIGN_OR_RETURN(std::vector<UniqueFd> fds,
                   MakeUserfaultfds(process, (own ? 1 : 0) + (shared != nullptr ? 2 : 0)));
  if (own) {
    ASSIGN_OR_RETURN(saved.tracker, WriteTracker::Begin(std::move(fds.back())));
    fds.pop_back();
  }
  // Without it the objects that it maps are left out, but not the process.
  const Status added = shared != nullptr ? shared->Add(process, std::move(fds)) : OkStatus();
  if (!added.ok()) log.Debug(Name(process) + ": " + Message(added));
  Watch(saved);  // after it, for it needs the stack to itself
  return saved;
}

void Recount(const FrozenProcess& process, EarlierStops& stops) {
  const Result<std::string> text = ReadFileAt(process.proc.get(), "status");
  const Result<TaskStatus> status = text.ok() ? ParseTaskStatus(*text) : text.status();
  if (status.ok()) stops.Recount(process.pid, status->voluntary_switches);
}

// Whether maps shows one line for both.
bool SameArea(const Vma& a, const Vma& b) {
  const auto line = [](const Vma& vma) {
    return std::tie(vma.start, vma.end, vma.prot, vma.shared, vma.offset, vma.dev_major,
                    vma.dev_minor, vma.inode, vma.path);
  };
  return line(a) == line(b);
}

// That of `vmas`, which rise, at the place of `vma`; null when maps tells another line there.
const Vma* FindSame(const std::vector<Vma>& vmas, const Vma& vma) {
  const auto found = std::ranges::lower_bound(vmas, vma.start, {}, &Vma::start);
  return found != vmas.end() && SameArea(*found, vma) ? &*found : nullptr;
}

// Whether `now` may be a part of what `then` was, or it of `now`, with other flags.
bool HasOtherFlags(const Vma& then, const Vma& now) {
  const auto kind = [](const Vma& vma) {
    return std::tie(vma.prot, vma.shared, vma.dev_major, vma.dev_minor, vma.inode, vma.path);
  };
  const bool is_same = kind(then) == kind(now) &&
                       (now.inode == 0 || then.offset - then.start == now.offset - now.start);
  return is_same && (then.flags != now.flags || then.protection_key != now.protection_key);
}

using Scan = Result<PageRanges> (PageMap::*)(std::uint64_t start, std::uint64_t end) const;

// Pages that `scan` finds in what is watched.
Result<PageRanges> Pages(const SavedProcess& process, Scan scan) {
  PageRanges pages;
  ASSIGN_OR_RETURN(const PageMap map, PageMap::Open(process.proc.get()));
  for (const PageRange& range : process.tracker->watched()) {
    ASSIGN_OR_RETURN(const PageRanges found, (map.*scan)(range.start, range.end));
    for (const PageRange& run : found) Append(pages, run);
  }
  return pages;
}

// One round, as a checkpoint of its own that has nothing but memory.
class Round {
 public:
  Round(const DumpRequest& request, ImageSink& sink, std::uint64_t total_pages)
      : request_(request), sink_(sink), total_bytes_(total_pages * kPageBytes) {}

  Status Write(const std::list<SavedProcess>& processes, SharedCopy* shared) {
    for (const SavedProcess& process : processes) {
      if (!process.tracker) continue;
      const PageSource source = {.kind = PageSource::Kind::kRunning, .fd = process.memory.get()};
      Add("pagemap", process.id, source, process.taken, process.saved);
    }
    if (shared != nullptr) {
      for (const SavedObject& object : shared->objects()) {
        const PageSource source = {.kind = PageSource::Kind::kObject, .fd = object.content.get()};
        Add("pagemap-shmem", object.id(), source, object.taken, object.saved);
      }
    }
    RETURN_IF_ERROR(sink_.Fill(pages_, [this](std::uint64_t bytes) { return Progress(bytes); }));
    for (const Map& map : maps_) {
      RETURN_IF_ERROR(
          WritePageRuns(sink_, ImageName(map.type, map.id), map.type, map.pages_id, map.runs));
    }
    image::InventoryEntry inventory;
    inventory.set_img_version(2);
    inventory.set_fdinfo_per_id(true);
    inventory.set_ns_per_id(true);
    RETURN_IF_ERROR(PutOne(sink_, ImageName("inventory"), "inventory", inventory));
    return sink_.BeginIncrement();
  }

 private:
  struct Map {
    std::string_view type;
    std::uint64_t id;
    std::uint32_t pages_id;
    std::vector<PageRun> runs;
  };

  void Add(std::string_view type, std::uint64_t id, const PageSource& source,
           const PageRanges& taken, const PageRanges& saved) {
    const std::uint32_t pages_id = ++last_pages_id_;
    PageReader reader(source);
    for (const PageRange& range : taken) reader.Add(range, false);
    pages_.push_back(FileOf(pages_id, std::move(reader)));
    maps_.push_back(
        {type, id, pages_id, MergeRuns(taken, kRunPresent, Subtract(saved, taken), kRunInParent)});
  }

  Status Progress(std::uint64_t bytes) {
    done_bytes_ += bytes;
    if (request_.progress) request_.progress(done_bytes_, total_bytes_);
    return StillWanted(request_);
  }

  const DumpRequest& request_;
  ImageSink& sink_;
  const std::uint64_t total_bytes_;
  std::uint64_t done_bytes_ = 0;
  std::uint32_t last_pages_id_ = 0;
  std::vector<ImageContent> pages_;
  std::vector<Map> maps_;  // of these
};

}  // namespace

Status PreCopy::Begin(const DumpRequest& request, DumpReport& report) {
  const Candidates candidates = FindCandidates(request.root);
  rest_bytes_ = candidates.rest_bytes;
  rest_processes_ = candidates.others;
  if (!request.options.pre_copy || candidates.none() || !CanBeDumped(request)) return OkStatus();
  if (!candidates.shared.objects.empty()) {
    shared_ = std::make_unique<SharedCopy>(candidates.shared.objects);
  }
  const auto begin = [&](FrozenTree& tree) {
    for (FrozenProcess& process : tree.processes()) {
      const bool own = candidates.pids.contains(process.pid);
      const bool maps = candidates.shared.mappers.contains(process.pid);
      if (process.zombie || (!own && !maps)) continue;
      Result<SavedProcess> saved =
          BeginOne(process, own, maps ? shared_.get() : nullptr, request.log);
      Recount(process, earlier_stops_);
      if (!saved.ok()) request.log.Debug(Name(process) + ": " + Message(saved.status()));
      if (saved.ok()) processes_.push_back(*std::move(saved));
    }
  };
  const Status status = StandStill(request, report, earlier_stops_, begin);
  if (shared_) shared_->Begin(candidates.tree, request.log);
  return status;
}

std::uint64_t PreCopy::Take(const Log& log) {
  std::uint64_t count = shared_ ? shared_->Take(log) : 0;
  std::erase_if(processes_, [&](SavedProcess& process) {
    if (!process.tracker) return false;
    Result<PageRanges> pages = Pages(process, &PageMap::TakeWritten);
    // It has ended; or some of its pages were taken, and nobody knows which.
    if (!pages.ok()) return true;
    process.taken = *std::move(pages);
    count += PageCount(process.taken);
    return false;
  });
  return count;
}

std::uint64_t PreCopy::Keep() {
  std::uint64_t written = shared_ ? shared_->Keep() : 0;
  for (SavedProcess& process : processes_) {
    if (!process.tracker) continue;
    process.saved = Unite(process.saved, std::exchange(process.taken, {}));
    const Result<PageRanges> pages = Pages(process, &PageMap::Written);
    if (pages.ok()) written += PageCount(*pages);
  }
  return written;
}

Result<PreCopy> PreCopy::Run(const DumpRequest& request, ImageSink& sink, DumpReport& report) {
  PreCopy copy;
  // Whatever hinders it hinders the dump too, or nobody.
  if (!copy.Begin(request, report).ok()) return PreCopy();
  for (int round = 1; round <= kMostRounds; ++round) {
    const std::uint64_t pages = copy.Take(request.log);
    if (pages == 0) break;
    RETURN_IF_ERROR(StillWanted(request));
    RETURN_IF_ERROR(StandStill(request, report, copy.earlier_stops_));
    RETURN_IF_ERROR(Round(request, sink, pages).Write(copy.processes_, copy.shared_.get()));
    const std::uint64_t written = copy.Keep();
    report.pages_copied_before += pages;
    request.log.Info("round " + std::to_string(round) + ": " + std::to_string(pages) +
                     " pages saved while the tree runs, " + std::to_string(written) +
                     " written meanwhile");
    if (written <= kFewPages || written > pages / 5 * 4) break;
  }
  copy.LookAtOthers(request);
  for (SavedProcess& process : copy.processes_) {
    process.vmas = ReadSmaps(process.proc.get()).value_or(std::vector<Vma>());
    for (Vma& vma : process.vmas) copy.HideFrom(process, vma);
  }
  return copy;
}

// A tree of many processes, or with many stacks, would stand still a quarter longer for smaps. Not without PAGEMAP_SCAN:
// then it has to tell which areas are empty.
void PreCopy::LookAtOthers(const DumpRequest& request) {
  constexpr std::size_t kManyTasks = 32;
  constexpr std::size_t kTooMany = 400;  // processes, for 18 KiB each
  if (request.fate != Fate::kLeaveRunning || !request.options.pre_copy) return;
  Result<FrozenTree> tree = FrozenTree::Look(request.root);
  if (!tree.ok() || tree->processes().size() > kTooMany) return;
  std::size_t tasks = 0;
  for (const FrozenProcess& process : tree->processes()) tasks += process.threads.size();
  if (tasks < kManyTasks) return;
  const Result<PageMap> map = PageMap::Open(tree->root().proc.get());
  if (!map.ok() || !map->scans()) return;
  for (FrozenProcess& process : tree->processes()) {
    if (process.zombie || FindOurs(process) != nullptr) continue;
    SavedProcess& other = processes_.emplace_back();
    other.pid = process.pid;
    other.id = static_cast<std::uint64_t>(process.ns_pid);
    other.start_time = process.stat.start_time;
    other.proc = std::move(process.proc);
  }
}

Result<std::vector<Vma>> PreCopy::ReadVmas(const FrozenProcess& process, Fate fate) {
  SavedProcess* const saved = FindOurs(process);
  if (saved != nullptr && fate == Fate::kLeaveRunning) {
    ASSIGN_OR_RETURN(std::vector<Vma> vmas, ReadMaps(process.proc.get(), saved->vmas.size()));
    const bool known = std::ranges::all_of(
        vmas, [&](const Vma& vma) { return FindSame(saved->vmas, vma) != nullptr; });
    if (known) {
      for (Vma& vma : vmas) vma = *FindSame(saved->vmas, vma);
      saved->vmas_used = true;
      return vmas;
    }
  }
  ASSIGN_OR_RETURN(std::vector<Vma> vmas, ReadSmaps(process.proc.get()));
  if (saved != nullptr) {
    for (Vma& vma : vmas) HideFrom(*saved, vma);
  }
  return vmas;
}

Status PreCopy::CheckAdvices() {
  for (SavedProcess& process : processes_) {
    if (!process.vmas_used) continue;
    const Status same = EachOfSmaps(process.proc.get(), [&](Vma& vma) -> Status {
      HideFrom(process, vma);
      auto then = std::ranges::upper_bound(process.vmas, vma.start, {}, &Vma::end);
      while (then != process.vmas.end() && then->start < vma.end && !HasOtherFlags(*then, vma)) {
        ++then;
      }
      if (then == process.vmas.end() || then->start >= vma.end) return OkStatus();
      return Unavailable("pid " + std::to_string(process.id) +
                         " changed the advice for its memory (madvise(2), mlock(2)) while it was "
                         "checkpointed; try again");
    });
    if (same.code() == StatusCode::kUnavailable) return same;  // else it has ended
  }
  return OkStatus();
}

void PreCopy::HideFrom(const SavedProcess& process, Vma& vma) const {
  if (process.tracker) process.tracker->HideFrom(vma);
  if (shared_) shared_->HideFrom(process.pid, vma);
}

SavedProcess* PreCopy::FindOurs(const FrozenProcess& process) {
  const auto found = std::ranges::find_if(processes_, [&](const SavedProcess& saved) {
    return saved.pid == process.pid && saved.start_time == process.stat.start_time;
  });
  return found == processes_.end() ? nullptr : &*found;
}

const SavedProcess* PreCopy::Find(const FrozenProcess& process) const {
  const SavedProcess* const found = const_cast<PreCopy*>(this)->FindOurs(process);
  return found != nullptr && found->tracker ? found : nullptr;
}

std::map<std::uint64_t, PageRanges> PreCopy::CleanObjects(std::span<const MappedAreas> tree,
                                                          const std::set<ObjectKey>& open_files,
                                                          const Log& log) {
  if (!shared_) return {};
  return shared_->Clean(tree, open_files, log);
}

void PreCopy::End() {
  for (SavedProcess& process : processes_) {
    if (!process.tracker) continue;
    const std::size_t expected = std::exchange(process.vmas, {}).size();
    process.tracker->End(ReadMaps(process.proc.get(), expected).value_or(std::vector<Vma>()));
  }
  if (shared_) shared_->End();
}

}  // namespace stasis::engine
