// Source  reference of the page files: pagemap.proto of CRIU 4.2; lseek(2) SEEK_DATA; tested on
//         6.18
// Rule    What a private file mapping shares with the page cache is in the file. The vDSO is stored
//         whole: a restore compares it with its own kernel's.
// Rule    Shared memory is the object's, not a process's: it is read once, through any mapping of
//         it, also where no process has it in its page tables.
#include "engine/memory/dump_memory.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "engine/base/in_halves.h"
#include "engine/base/io.h"
#include "engine/dump_watch.h"
#include "engine/image/image_file.h"
#include "engine/memory/object_pages.h"
#include "engine/memory/page_copy.h"

namespace stasis::engine {
namespace {

bool HasPrivateContent(const Area& area) {
  if (area.Is(kAreaVvar) || area.Is(kAreaVsyscall)) return false;
  if (area.vma.Has("dp")) return false;  // MAP_DROPPABLE: may vanish at any time
  return area.Is(kAreaAnonPrivate) || area.Is(kAreaFilePrivate) || area.Is(kAreaAioRing);
}

// CRIU's rule for what may come after the process runs.
bool MayBeLazy(const Area& area) {
  return area.Is(kAreaAnonPrivate) && !area.Is(kAreaVdso) && !area.vma.Has("lo");
}

PageRange All(const Area& area) { return {area.vma.start, area.vma.end}; }

// What a process has in its areas.
class Look {
 public:
  static Result<Look> At(const MemoryDumper::Process& process) {
    ASSIGN_OR_RETURN(PageMap map, PageMap::Open(process.frozen.proc.get()));
    Look look(process, std::move(map));
    // One scan over all takes less time than one for each of many areas.
    if (process.saved == nullptr && !look.map_.scans()) {
      for (const Area& area : process.areas) RETURN_IF_ERROR(look.AddOwn(area));
    } else if (process.saved == nullptr) {
      RETURN_IF_ERROR(look.AddAllOwn());
    }
    return look;
  }

  // What of `area` is as it was when it was saved.
  Result<PageRanges> CleanIn(const Area& area) const {
    if (process_->saved == nullptr || !area.Is(kAreaAnonPrivate)) return PageRanges();
    ASSIGN_OR_RETURN(const PageRanges unwritten,
                     map_.Unwritten(area.vma.start, area.vma.end, area.vma.Has("ht")));
    return Intersect(unwritten, process_->saved->saved);
  }

  // ... and what is in it besides.
  Result<PageMap::Own> OwnIn(const Area& area, const PageRanges& clean) const {
    if (process_->saved == nullptr) {
      return PageMap::Own{Within(own_.content, All(area)), Within(own_.guards, All(area))};
    }
    if (HasNothingButGuards(area)) {
      ASSIGN_OR_RETURN(const PageRanges guards, map_.FindGuards(area.vma.start, area.vma.end));
      return PageMap::Own{{}, guards};
    }
    // A call takes as long as to look at some hundred pages.
    constexpr std::uint64_t kFewScans = 64, kPagesOfCall = 128;
    const PageRanges rest = Subtract({All(area)}, clean);
    if (rest.size() > std::max(kFewScans, area.vma.size() / kPageBytes / kPagesOfCall)) {
      ASSIGN_OR_RETURN(const PageMap::Own found, map_.FindOwn(rest.front().start, rest.back().end));
      return PageMap::Own{Intersect(found.content, rest), Intersect(found.guards, rest)};
    }
    PageMap::Own all;
    for (const PageRange& range : rest) {
      ASSIGN_OR_RETURN(const PageMap::Own found, map_.FindOwn(range.start, range.end));
      for (const PageRange& pages : found.content) Append(all.content, pages);
      for (const PageRange& pages : found.guards) Append(all.guards, pages);
    }
    return all;
  }

 private:
  // Shared memory of some size, whose pages are not looked at one by one.
  static bool HasNothingButGuards(const Area& area) {
    constexpr std::uint64_t kLargeBytes = std::uint64_t{4} << 20;
    return !HasPrivateContent(area) && area.vma.size() >= kLargeBytes;
  }

  Status AddAllOwn() {
    PageRange run;
    const auto add = [this](const PageRange& range) -> Status {
      if (range.start >= range.end) return OkStatus();
      ASSIGN_OR_RETURN(const PageMap::Own found, map_.FindOwn(range.start, range.end));
      for (const PageRange& pages : found.content) Append(own_.content, pages);
      for (const PageRange& pages : found.guards) Append(own_.guards, pages);
      return OkStatus();
    };
    for (const Area& area : process_->areas) {
      if (area.Is(kAreaVsyscall)) continue;
      if (!HasNothingButGuards(area)) {
        run.end = area.vma.end;
        continue;
      }
      RETURN_IF_ERROR(add(run));
      run = {area.vma.end, area.vma.end};
      ASSIGN_OR_RETURN(const PageRanges guards, map_.FindGuards(area.vma.start, area.vma.end));
      for (const PageRange& pages : guards) Append(own_.guards, pages);
    }
    return add(run);
  }

  // Reservations that are empty, of terabytes at times, are passed over.
  Status AddOwn(const Area& area) {
    if (area.Is(kAreaVsyscall)) return OkStatus();
    const bool is_counted = !area.vma.Has("ht");
    if (is_counted && area.vma.resident + area.vma.shared_or_swapped == 0) return OkStatus();
    ASSIGN_OR_RETURN(const PageMap::Own found, map_.FindOwn(area.vma.start, area.vma.end));
    for (const PageRange& pages : found.content) Append(own_.content, pages);
    return OkStatus();
  }

  Look(const MemoryDumper::Process& process, PageMap map)
      : process_(&process), map_(std::move(map)) {}

  const MemoryDumper::Process* process_;
  PageMap map_;
  PageMap::Own own_ = {};  // of all areas, where nothing was saved before
};

image::VmaEntry GuardEntry(const PageRange& range) {
  image::VmaEntry entry;
  entry.set_start(range.start);
  entry.set_end(range.end);
  entry.set_pgoff(0);
  entry.set_shmid(0);
  entry.set_prot(0);
  entry.set_flags(0);
  entry.set_status(kAreaGuard);
  entry.set_fd(-1);
  return entry;
}

Result<UniqueFd> OpenAgain(int fd) {
  return OpenAt(AT_FDCWD, "/proc/self/fd/" + std::to_string(fd), O_RDONLY);
}

}  // namespace

void MemoryDumper::Content::Add(PageRange pages, std::uint32_t flags, bool copied_on_write) {
  if (pages.start == pages.end) return;
  if (!runs.empty() && runs.back().pages.end == pages.start && runs.back().flags == flags &&
      runs.back().copied_on_write == copied_on_write) {
    runs.back().pages.end = pages.end;
  } else {
    runs.push_back({{pages, flags}, copied_on_write});
  }
}

std::uint64_t MemoryDumper::Content::page_count() const {
  std::uint64_t count = 0;
  for (const Run& run : runs) {
    if ((run.flags & kRunPresent) != 0) count += run.pages.page_count();
  }
  return count;
}

Status MemoryDumper::Scan(Found& found) {
  const FrozenProcess& process = found.process->frozen;
  ASSIGN_OR_RETURN(const Look look, Look::At(*found.process));
  found.content.pid = process.pid;
  found.content.id = static_cast<std::uint64_t>(process.ns_pid);
  ASSIGN_OR_RETURN(found.content.memory, OpenAt(process.proc.get(), "mem", O_RDONLY));
  for (const Area& area : found.process->areas) {
    if (area.Is(kAreaVsyscall)) continue;
    ASSIGN_OR_RETURN(const PageRanges clean, look.CleanIn(area));
    ASSIGN_OR_RETURN(PageMap::Own own, look.OwnIn(area, clean));
    for (const PageRange& range : own.guards) Append(found.guards, range);
    if (!HasPrivateContent(area)) continue;
    found.pages.scanned += area.vma.size() / kPageBytes;
    found.pages.in_parent += PageCount(clean);
    AddArea(area, std::move(own.content), clean, found);
  }
  return OkStatus();
}

Status MemoryDumper::Add(std::span<const Process> processes) {
  std::vector<Found> all;
  all.reserve(processes.size());
  for (const Process& process : processes) all.push_back({.process = &process});
  RETURN_IF_ERROR(InHalves(std::span(all), [](Found& found) -> Status {
    return Annotate(Scan(found), "pid " + std::to_string(found.process->frozen.ns_pid));
  }));
  for (Found& found : all) {
    const Process& process = *found.process;
    for (const Area& area : process.areas) {
      if (!area.Is(kAreaAnonShared) || objects_.contains(area.vma.inode)) continue;
      ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(process.frozen.proc.get(), area.LinkName(), O_RDONLY));
      RETURN_IF_ERROR(AddObject(area.vma.inode, std::move(fd)));
    }
    for (const PageRange& range : found.guards) {
      process.areas.push_back({.vma = {}, .entry = GuardEntry(range)});
    }
    report_.process_pages += found.pages;
    total_bytes_ += found.content.page_count() * kPageBytes;
    found.content.pages_id = next_pages_id_++;
    processes_.push_back(std::move(found.content));
  }
  return OkStatus();
}

void MemoryDumper::AddArea(const Area& area, PageRanges content, const PageRanges& in_parent,
                           Found& found) {
  // All of the vDSO, touched or not: a restore compares it with its own kernel's. And all of a ring, which is
  // the kernel's own file.
  if (area.Is(kAreaVdso) || area.Is(kAreaAioRing)) content = {All(area)};
  const bool copied_on_write = area.vma.shared_or_swapped > 0;
  const std::uint32_t lazy = MayBeLazy(area) ? kRunLazy : 0;
  for (const PageRun& run : MergeRuns(content, kRunPresent, in_parent, kRunInParent)) {
    std::uint64_t at = run.pages.start;
    const std::vector<std::uint64_t>& pointers = found.process->stack_pointers;
    for (auto pointer = std::ranges::lower_bound(pointers, at);
         pointer != pointers.end() && *pointer < run.pages.end; ++pointer) {
      const std::uint64_t page = *pointer & ~(kPageBytes - 1);
      if (page < at) continue;
      found.content.Add({at, page}, run.flags | lazy, copied_on_write);
      found.content.Add({page, page + kPageBytes}, run.flags, copied_on_write);
      at = page + kPageBytes;
    }
    found.content.Add({at, run.pages.end}, run.flags | lazy, copied_on_write);
  }
}

Status MemoryDumper::AddObject(std::uint64_t id, UniqueFd fd) {
  if (objects_.contains(id)) return OkStatus();
  Content content;
  content.id = id;
  content.pages_id = next_pages_id_++;
  content.memory = std::move(fd);
  const PageRanges& in_parent = clean_objects_[id];
  ASSIGN_OR_RETURN(const PageRanges rest, PagesOfObject(content.memory.get(), in_parent));
  for (const PageRun& run : MergeRuns(rest, kRunPresent, in_parent, kRunInParent)) {
    content.Add(run.pages, run.flags, false);
  }
  report_.object_pages.scanned += PageCount(rest) + PageCount(in_parent);
  report_.object_pages.in_parent += PageCount(in_parent);
  total_bytes_ += content.page_count() * kPageBytes;
  objects_.emplace(id, std::move(content));
  return OkStatus();
}

Status MemoryDumper::AddBorrowed(std::uint64_t id, int fd) {
  if (objects_.contains(id)) return OkStatus();
  ASSIGN_OR_RETURN(UniqueFd again, OpenAgain(fd));
  RETURN_IF_ERROR(AddObject(id, std::move(again)));
  Content& content = objects_.at(id);
  content.memory.Reset();
  content.borrowed = fd;
  return OkStatus();
}

// `again`: where the source is open, for as long as it is read, when the content has only borrowed it.
Result<PageReader> MemoryDumper::ReaderOf(const Content& content, UniqueFd& again) {
  if (content.borrowed >= 0) {
    ASSIGN_OR_RETURN(again, OpenAgain(content.borrowed));
  }
  PageReader reader(
      {.kind = content.pid != 0 ? PageSource::Kind::kFrozen : PageSource::Kind::kObject,
       .fd = again ? again.get() : content.memory.get(),
       .pid = content.pid});
  for (const Run& run : content.runs) {
    if ((run.flags & kRunPresent) != 0) reader.Add(run.pages, run.copied_on_write);
  }
  return reader;
}

Status MemoryDumper::WritePages(HeldSink& sink) {
  std::vector<Held> held;
  std::vector<const Content*> others;
  const auto add = [&](const Content& content) {
    const auto room =
        sink.Hold(ImageName("pages", content.pages_id), content.page_count() * kPageBytes);
    if (room) {
      held.push_back({&content, *room});
    } else {
      others.push_back(&content);
    }
    PageCounts& pages = content.pid != 0 ? report_.process_pages : report_.object_pages;
    pages.written += content.page_count();
  };
  for (const Content& content : processes_) add(content);
  for (const auto& [id, content] : objects_) add(content);
  const Status filled = InHalves(std::span(held), [this](const Held& file) -> Status {
    RETURN_IF_ERROR(StillWanted(request_));
    UniqueFd again;
    ASSIGN_OR_RETURN(const PageReader reader, ReaderOf(*file.content, again));
    return reader.size() == 0 ? OkStatus() : reader.ReadAt(0, file.room);
  });
  RETURN_IF_ERROR(filled);
  std::uint64_t bytes = 0;
  for (const Held& file : held) bytes += file.room.size();
  RETURN_IF_ERROR(Progress(bytes));
  return WriteOthers(others, sink);
}

Status MemoryDumper::WriteOthers(std::span<const Content* const> contents, ImageSink& sink) {
  constexpr std::size_t kAtOnce = 512;  // that are open, and wait for each other at the end
  while (!contents.empty()) {
    const auto some = contents.first(std::min(contents.size(), kAtOnce));
    contents = contents.subspan(some.size());
    std::vector<UniqueFd> again(some.size());
    std::vector<ImageContent> files;
    for (std::size_t at = 0; at < some.size(); ++at) {
      ASSIGN_OR_RETURN(PageReader reader, ReaderOf(*some[at], again[at]));
      files.push_back(FileOf(some[at]->pages_id, std::move(reader)));
    }
    RETURN_IF_ERROR(sink.Fill(files, [this](std::uint64_t bytes) { return Progress(bytes); }));
  }
  return OkStatus();
}

Status MemoryDumper::Progress(std::uint64_t bytes) {
  done_bytes_ += bytes;
  if (request_.progress) request_.progress(done_bytes_, total_bytes_);
  return StillWanted(request_);
}

Status MemoryDumper::WritePageMaps(ImageSink& sink) const {
  const auto write = [&sink](std::string_view type, const Content& content) -> Status {
    const std::vector<PageRun> runs(content.runs.begin(), content.runs.end());
    return WritePageRuns(sink, ImageName(type, content.id), type, content.pages_id, runs);
  };
  for (const Content& content : processes_) RETURN_IF_ERROR(write("pagemap", content));
  for (const auto& [id, content] : objects_) RETURN_IF_ERROR(write("pagemap-shmem", content));
  return OkStatus();
}

}  // namespace stasis::engine
