#include "archive/process_memory.h"

#include <algorithm>
#include <optional>
#include <span>

#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"

namespace stasis::archive {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint32_t kInParent = 1;  // CRIU's PE_PARENT and PE_PRESENT
constexpr std::uint32_t kPresent = 4;
constexpr std::string_view kParentFolder = "parent/";
constexpr std::size_t kMostParents = 64;

std::uint64_t PageCount(const image::PagemapEntry& entry) {
  return entry.has_nr_pages() ? entry.nr_pages() : entry.compat_nr_pages();
}

/// Images from before the flags: everything is in the page file but what `in_parent` says.
std::uint32_t Flags(const image::PagemapEntry& entry) {
  if (entry.has_flags()) return entry.flags();
  return entry.in_parent() ? kInParent : kPresent;
}

}  // namespace

Result<ProcessMemory> ProcessMemory::Open(const engine::ImageSource& images, std::uint32_t pid) {
  return OpenAt(images, "", engine::ImageName("pagemap", pid));
}

Result<ProcessMemory> ProcessMemory::OpenAt(const engine::ImageSource& images,
                                            const std::string& folder, const std::string& name) {
  if (folder.size() > kMostParents * kParentFolder.size()) {
    return InvalidArgument("more than 64 checkpoints on each other");
  }
  ASSIGN_OR_RETURN(engine::ImageFileReader reader,
                   engine::ImageFileReader::Open(images, folder + name, "pagemap"));
  image::PagemapHead head;
  RETURN_IF_ERROR(reader.Record(head));
  ProcessMemory memory(images);
  memory.files_.push_back(folder + engine::ImageName("pages", head.pages_id()));
  std::optional<ProcessMemory> parent;
  std::uint64_t last_end = 0, in_file = 0;
  while (!reader.AtEnd()) {
    image::PagemapEntry entry;
    RETURN_IF_ERROR(reader.Record(entry));
    const std::uint64_t count = PageCount(entry), begin = entry.vaddr();
    if (count > UINT64_MAX / kPage || begin + count * kPage < begin || begin < last_end) {
      return InvalidArgument(folder + name + ": runs of pages that overlap or never end");
    }
    last_end = begin + count * kPage;
    if ((Flags(entry) & kInParent) != 0) {
      if (!parent) {
        Result<ProcessMemory> opened = OpenAt(images, folder + std::string(kParentFolder), name);
        RETURN_IF_ERROR(opened.status());
        parent.emplace(*std::move(opened));
        memory.files_.insert(memory.files_.end(), parent->files_.begin(), parent->files_.end());
      }
      memory.TakeFrom(*parent, begin, last_end);
    } else if ((Flags(entry) & kPresent) != 0) {
      memory.Add({.begin = begin, .end = last_end, .file = 0, .offset = in_file});
      in_file += count * kPage;
    }
  }
  return memory;
}

void ProcessMemory::Add(const Run& run) {
  runs_.push_back(run);
  saved_bytes_ += run.end - run.begin;
}

void ProcessMemory::TakeFrom(const ProcessMemory& parent, std::uint64_t begin, std::uint64_t end) {
  auto run = std::ranges::upper_bound(parent.runs_, begin, {}, &Run::end);
  for (; run != parent.runs_.end() && run->begin < end; ++run) {
    const std::uint64_t from = std::max(begin, run->begin);
    Add({.begin = from,
         .end = std::min(end, run->end),
         .file = run->file + 1,
         .offset = run->offset + (from - run->begin)});
  }
}

Result<std::string> ProcessMemory::Read(std::uint64_t address, std::uint64_t length) const {
  std::string bytes;
  while (bytes.size() < length) {
    const auto run = std::upper_bound(runs_.begin(), runs_.end(), address,
                                      [](std::uint64_t at, const Run& r) { return at < r.end; });
    if (run == runs_.end() || address < run->begin) break;
    const std::uint64_t size = std::min<std::uint64_t>(length - bytes.size(), run->end - address);
    const std::size_t had = bytes.size();
    bytes.resize(had + size);
    RETURN_IF_ERROR(images_.ReadAt(files_[run->file], run->offset + (address - run->begin),
                                   std::as_writable_bytes(std::span(bytes.data() + had, size))));
    address += size;
  }
  return bytes;
}

}  // namespace stasis::archive
