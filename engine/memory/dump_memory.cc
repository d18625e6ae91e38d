// Source  reference of the page files: pagemap.proto of CRIU 4.2; lseek(2) SEEK_DATA; tested on
//         6.18
// Rule    What a private file mapping shares with the page cache is in the file. The vDSO is stored
//         whole: a restore compares it with its own kernel's.
// Rule    Shared memory is the object's, not a process's: it is read once, through any mapping of
//         it, also where no process has it in its page tables.
#include "engine/memory/dump_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/base/io.h"
#include "engine/dump_watch.h"
#include "engine/image/image_file.h"
#include "engine/memory/page_copy.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kLazy = 2, kPresent = 4;  // PE_LAZY, PE_PRESENT

bool HasPrivateContent(const Area& area) {
  if (area.Is(kAreaVvar) || area.Is(kAreaVsyscall)) return false;
  if (area.vma.Has("dp")) return false;  // MAP_DROPPABLE: may vanish at any time
  return area.Is(kAreaAnonPrivate) || area.Is(kAreaFilePrivate) || area.Is(kAreaAioRing);
}

// CRIU's rule for what may come after the process runs.
bool MayBeLazy(const Area& area) {
  return area.Is(kAreaAnonPrivate) && !area.Is(kAreaVdso) && !area.vma.Has("lo");
}

Result<std::vector<PageRange>> DataOf(int fd) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) {
    return SyscallError(errno, "fstat of shared memory");
  }
  std::vector<PageRange> ranges;
  off_t at = 0;
  while (at < st.st_size) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0) {
      if (errno == ENXIO) break;  // only a hole is left
      return SyscallError(errno, "lseek SEEK_DATA in shared memory");
    }
    at = ::lseek(fd, data, SEEK_HOLE);
    if (at < 0) {
      return SyscallError(errno, "lseek SEEK_HOLE in shared memory");
    }
    // What ends within a page has the rest of that page too.
    const std::uint64_t end = (static_cast<std::uint64_t>(at) + kPageBytes - 1) & ~(kPageBytes - 1);
    ranges.push_back({static_cast<std::uint64_t>(data), end});
  }
  return ranges;
}

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

}  // namespace

std::uint64_t MemoryDumper::Content::page_count() const {
  std::uint64_t count = 0;
  for (const Run& run : runs) count += run.pages.page_count();
  return count;
}

Status MemoryDumper::Add(const FrozenProcess& process, std::vector<Area>& areas,
                         std::span<const std::uint64_t> stack_pointers) {
  ASSIGN_OR_RETURN(const PageMap map, PageMap::Open(process.proc.get()));
  Content content;
  content.pid = process.pid;
  content.id = static_cast<std::uint64_t>(process.ns_pid);
  content.pages_id = next_pages_id_++;
  ASSIGN_OR_RETURN(content.memory, OpenAt(process.proc.get(), "mem", O_RDONLY));
  std::uint64_t end = 0;
  for (const Area& area : areas) {
    if (area.Is(kAreaAnonShared) && !objects_.contains(area.vma.inode)) {
      ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(process.proc.get(), area.LinkName(), O_RDONLY));
      RETURN_IF_ERROR(AddObject(area.vma.inode, std::move(fd)));
    }
    if (!HasPrivateContent(area)) continue;
    report_.pages_scanned += area.vma.size() / kPageBytes;
    RETURN_IF_ERROR(AddArea(area, map, stack_pointers, content));
    end = area.vma.end;
  }
  ASSIGN_OR_RETURN(const std::vector<PageRange> guards, map.Guards(0, end));
  for (const PageRange& range : guards) {
    areas.push_back({.vma = {}, .entry = GuardEntry(range)});
  }
  total_bytes_ += content.page_count() * kPageBytes;
  processes_.push_back(std::move(content));
  return OkStatus();
}

Status MemoryDumper::AddArea(const Area& area, const PageMap& map,
                             std::span<const std::uint64_t> stack_pointers, Content& content) {
  // All of the vDSO, touched or not: a restore compares it with its own kernel's. And all of a ring, which is
  // the kernel's own file.
  std::vector<PageRange> ranges = {{area.vma.start, area.vma.end}};
  if (!area.Is(kAreaVdso) && !area.Is(kAreaAioRing)) {
    ASSIGN_OR_RETURN(ranges, map.WithContent(area.vma.start, area.vma.end, false));
  }
  const bool copied_on_write = area.vma.shared_or_swapped > 0;
  const auto add = [&](std::uint64_t start, std::uint64_t end, std::uint32_t flags) {
    if (start == end) return;
    std::vector<Run>& runs = content.runs;
    if (!runs.empty() && runs.back().pages.end == start && runs.back().flags == flags &&
        runs.back().copied_on_write == copied_on_write) {
      runs.back().pages.end = end;
    } else {
      runs.push_back({{start, end}, flags, copied_on_write});
    }
  };
  for (const PageRange& range : ranges) {
    if (!MayBeLazy(area)) {
      add(range.start, range.end, kPresent);
      continue;
    }
    std::uint64_t at = range.start;
    for (const std::uint64_t pointer : stack_pointers) {  // in rising order
      const std::uint64_t page = pointer & ~(kPageBytes - 1);
      if (page < at || page >= range.end) continue;
      add(at, page, kPresent | kLazy);
      add(page, page + kPageBytes, kPresent);
      at = page + kPageBytes;
    }
    add(at, range.end, kPresent | kLazy);
  }
  return OkStatus();
}

Status MemoryDumper::AddObject(std::uint64_t id, UniqueFd fd) {
  if (objects_.contains(id)) return OkStatus();
  Content content;
  content.id = id;
  content.pages_id = next_pages_id_++;
  content.memory = std::move(fd);
  ASSIGN_OR_RETURN(const std::vector<PageRange> ranges, DataOf(content.memory.get()));
  for (const PageRange& range : ranges) {
    content.runs.push_back({.pages = range, .flags = kPresent, .copied_on_write = false});
    report_.pages_scanned += range.page_count();
  }
  total_bytes_ += content.page_count() * kPageBytes;
  objects_.emplace(id, std::move(content));
  return OkStatus();
}

Status MemoryDumper::WritePages(ImageSink& sink) {
  for (const Content& content : processes_) RETURN_IF_ERROR(Write(content, sink));
  for (const auto& [id, content] : objects_) RETURN_IF_ERROR(Write(content, sink));
  return OkStatus();
}

Status MemoryDumper::Write(const Content& content, ImageSink& sink) {
  const std::uint64_t size = content.page_count() * kPageBytes;
  const std::string name = ImageName("pages", content.pages_id);
  ASSIGN_OR_RETURN(const std::unique_ptr<ImageStream> stream, sink.Open(name, size));
  PageCopier copier(content.pid, content.memory.get(), [&](std::span<const std::byte> bytes) {
    const Status status = stream->Write(bytes);
    return status.ok() ? Progress(bytes.size()) : status;
  });
  for (const Run& run : content.runs) RETURN_IF_ERROR(copier.Add(run.pages, run.copied_on_write));
  RETURN_IF_ERROR(copier.Flush());
  report_.pages_written += content.page_count();
  return stream->Finish();
}

Status MemoryDumper::Progress(std::uint64_t bytes) {
  done_bytes_ += bytes;
  if (request_.progress) request_.progress(done_bytes_, total_bytes_);
  return StillWanted(request_);
}

Status MemoryDumper::WritePageMaps(ImageSink& sink) const {
  const auto write = [&sink](std::string_view type, const Content& content) -> Status {
    ImageFileBuilder file(type);
    image::PagemapHead head;
    head.set_pages_id(content.pages_id);
    RETURN_IF_ERROR(file.Add(head));
    for (const Run& run : content.runs) {
      image::PagemapEntry entry;
      entry.set_vaddr(run.pages.start);
      // Readers before CRIU 4.2 know the first count only.
      entry.set_compat_nr_pages(static_cast<std::uint32_t>(run.pages.page_count()));
      entry.set_nr_pages(run.pages.page_count());
      entry.set_flags(run.flags);
      RETURN_IF_ERROR(file.Add(entry));
    }
    return sink.Put(ImageName(type, content.id), file.bytes());
  };
  for (const Content& content : processes_) RETURN_IF_ERROR(write("pagemap", content));
  for (const auto& [id, content] : objects_) RETURN_IF_ERROR(write("pagemap-shmem", content));
  return OkStatus();
}

}  // namespace stasis::engine
