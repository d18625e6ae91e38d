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
#include "engine/proc/maps.h"
#include "engine/proc/task.h"
#include "engine/proc/text.h"
#include "engine/tasks/dump_tree.h"

namespace stasis::engine {
namespace {

using std::chrono::steady_clock;

// Less is copied in the time of the two short stops that this takes.
constexpr std::uint64_t kWorthwhileBytes = std::uint64_t{16} << 20;
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
  std::vector<pid_t> pids;       // of the tree, as it runs, that are worth it
  std::uint64_t rest_bytes = 0;  // of anonymous memory that the others have
  std::size_t others = 0;
};

Candidates FindCandidates(pid_t root) {
  Candidates found;
  const Result<FrozenTree> tree = FrozenTree::Look(root);
  if (!tree.ok()) return found;
  for (const FrozenProcess& process : tree->processes()) {
    if (process.zombie) continue;
    const std::uint64_t bytes = AnonymousBytes(process);
    if (bytes >= kWorthwhileBytes) {
      found.pids.push_back(process.pid);
    } else {
      found.rest_bytes += bytes;
      ++found.others;
    }
  }
  return found;
}

bool CanBeDumped(const DumpRequest& request) {
  const Result<DumpCheck> check = CheckDump(request.root, request.options);
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

Result<SavedProcess> BeginOne(FrozenProcess& process) {
  ASSIGN_OR_RETURN(UniqueFd proc, OpenAt(process.proc.get(), ".", O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(UniqueFd memory, OpenAt(process.proc.get(), "mem", O_RDONLY));
  ASSIGN_OR_RETURN(WriteTracker tracker, WriteTracker::Begin(process));
  return SavedProcess{.pid = process.pid,
                      .id = static_cast<std::uint64_t>(process.ns_pid),
                      .start_time = process.stat.start_time,
                      .proc = std::move(proc),
                      .memory = std::move(memory),
                      .tracker = std::move(tracker),
                      .saved = {},
                      .taken = {},
                      .vmas = {}};
}

void Recount(const FrozenProcess& process, EarlierStops& stops) {
  const Result<std::string> text = ReadFileAt(process.proc.get(), "status");
  const Result<TaskStatus> status = text.ok() ? ParseTaskStatus(*text) : text.status();
  if (status.ok()) stops.Recount(process.pid, status->voluntary_switches);
}

Result<std::vector<Vma>> ReadSmaps(int proc_fd) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(proc_fd, "smaps"));
  return ParseSmaps(text);
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

void Watch(SavedProcess& process) {
  const Result<std::vector<Vma>> vmas = ReadSmaps(process.proc.get());
  if (!vmas.ok()) return;
  const auto is_ring = [](const Vma& vma) { return vma.path == "/[aio] (deleted)"; };
  if (std::ranges::any_of(*vmas, is_ring)) return;
  for (const Vma& vma : *vmas) process.tracker.Watch(vma);
}

using Scan = Result<PageRanges> (PageMap::*)(std::uint64_t start, std::uint64_t end) const;

// Pages that `scan` finds in what is watched.
Result<PageRanges> Pages(const SavedProcess& process, Scan scan) {
  PageRanges pages;
  ASSIGN_OR_RETURN(const PageMap map, PageMap::Open(process.proc.get()));
  for (const PageRange& range : process.tracker.watched()) {
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

  Status Write(std::list<SavedProcess>& processes) {
    std::uint32_t pages_id = 0;
    for (SavedProcess& process : processes) RETURN_IF_ERROR(WriteOne(process, ++pages_id));
    image::InventoryEntry inventory;
    inventory.set_img_version(2);
    inventory.set_fdinfo_per_id(true);
    inventory.set_ns_per_id(true);
    RETURN_IF_ERROR(PutOne(sink_, ImageName("inventory"), "inventory", inventory));
    return sink_.BeginIncrement();
  }

 private:
  Status WriteOne(SavedProcess& process, std::uint32_t pages_id) {
    ASSIGN_OR_RETURN(const auto stream, sink_.Open(ImageName("pages", pages_id),
                                                   PageCount(process.taken) * kPageBytes));
    const PageSource source = {.kind = PageSource::Kind::kRunning, .fd = process.memory.get()};
    PageCopier copier(source, buffer_, [&](std::span<const std::byte> bytes) {
      const Status status = stream->Write(bytes);
      return status.ok() ? Progress(bytes.size()) : status;
    });
    for (const PageRange& range : process.taken) RETURN_IF_ERROR(copier.Add(range, false));
    RETURN_IF_ERROR(copier.Flush());
    RETURN_IF_ERROR(stream->Finish());
    const auto runs =
        MergeRuns(process.taken, kRunPresent, Subtract(process.saved, process.taken), kRunInParent);
    return WritePageRuns(sink_, ImageName("pagemap", process.id), "pagemap", pages_id, runs);
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
  const PageBuffer buffer_;
};

}  // namespace

Status PreCopy::Begin(const DumpRequest& request, DumpReport& report) {
  const auto [pids, rest_bytes, others] = FindCandidates(request.root);
  rest_bytes_ = rest_bytes;
  rest_processes_ = others;
  if (!request.options.pre_copy || pids.empty() || !CanBeDumped(request)) return OkStatus();
  const Status status =
      StandStill(request, report, earlier_stops_, [&, &pids = pids](FrozenTree& tree) {
        for (FrozenProcess& process : tree.processes()) {
          if (process.zombie || std::ranges::find(pids, process.pid) == pids.end()) continue;
          Result<SavedProcess> saved = BeginOne(process);
          Recount(process, earlier_stops_);
          if (!saved.ok()) request.log.Debug(Name(process) + ": " + Message(saved.status()));
          if (saved.ok()) processes_.push_back(*std::move(saved));
        }
      });
  for (SavedProcess& process : processes_) Watch(process);
  return status;
}

std::uint64_t PreCopy::Take() {
  std::uint64_t count = 0;
  std::erase_if(processes_, [&](SavedProcess& process) {
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
  std::uint64_t written = 0;
  for (SavedProcess& process : processes_) {
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
    const std::uint64_t pages = copy.Take();
    if (pages == 0) break;
    RETURN_IF_ERROR(StillWanted(request));
    RETURN_IF_ERROR(StandStill(request, report, copy.earlier_stops_));
    RETURN_IF_ERROR(Round(request, sink, pages).Write(copy.processes_));
    const std::uint64_t written = copy.Keep();
    report.pages_copied_before += pages;
    request.log.Info("round " + std::to_string(round) + ": " + std::to_string(pages) +
                     " pages saved while the tree runs, " + std::to_string(written) +
                     " written meanwhile");
    if (written <= kFewPages || written > pages / 5 * 4) break;
  }
  for (SavedProcess& process : copy.processes_) {
    process.vmas = ReadSmaps(process.proc.get()).value_or(std::vector<Vma>());
    for (Vma& vma : process.vmas) process.tracker.HideFrom(vma);
  }
  return copy;
}

Result<std::vector<Vma>> PreCopy::ReadVmas(const FrozenProcess& process, Fate fate) {
  SavedProcess* const saved = FindOurs(process);
  if (saved != nullptr && fate == Fate::kLeaveRunning) {
    ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "maps"));
    ASSIGN_OR_RETURN(std::vector<Vma> vmas, ParseMaps(text));
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
    for (Vma& vma : vmas) saved->tracker.HideFrom(vma);
  }
  return vmas;
}

Status PreCopy::CheckAdvices() {
  for (SavedProcess& process : processes_) {
    if (!process.vmas_used) continue;
    Result<std::vector<Vma>> now = ReadSmaps(process.proc.get());
    if (!now.ok()) continue;  // it has ended
    for (Vma& vma : *now) {
      process.tracker.HideFrom(vma);
      const Vma* const then = FindSame(process.vmas, vma);
      if (then == nullptr) continue;
      if (then->flags == vma.flags && then->protection_key == vma.protection_key) continue;
      return Unavailable("pid " + std::to_string(process.id) +
                         " changed the advice for its memory (madvise(2), mlock(2)) while it was "
                         "checkpointed; try again");
    }
  }
  return OkStatus();
}

SavedProcess* PreCopy::FindOurs(const FrozenProcess& process) {
  return const_cast<SavedProcess*>(std::as_const(*this).Find(process));
}

const SavedProcess* PreCopy::Find(const FrozenProcess& process) const {
  const auto found = std::ranges::find_if(processes_, [&](const SavedProcess& saved) {
    return saved.pid == process.pid && saved.start_time == process.stat.start_time;
  });
  return found == processes_.end() ? nullptr : &*found;
}

void PreCopy::End() {
  for (SavedProcess& process : processes_) process.tracker.End();
}

}  // namespace stasis::engine
