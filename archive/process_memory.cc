#include "archive/process_memory.h"

#include <algorithm>
#include <span>

#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"

namespace stasis::archive {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint32_t kInParent = 1;  // CRIU's PE_PARENT and PE_PRESENT
constexpr std::uint32_t kPresent = 4;

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
  ProcessMemory memory(images);
  const std::string name = engine::ImageName("pagemap", pid);
  ASSIGN_OR_RETURN(engine::ImageFileReader reader,
                   engine::ImageFileReader::Open(images, name, "pagemap"));
  image::PagemapHead head;
  RETURN_IF_ERROR(reader.Record(head));
  memory.pages_name_ = engine::ImageName("pages", head.pages_id());
  std::uint64_t last_end = 0;
  while (!reader.AtEnd()) {
    image::PagemapEntry entry;
    RETURN_IF_ERROR(reader.Record(entry));
    const std::uint64_t count = PageCount(entry);
    if (count > UINT64_MAX / kPage || entry.vaddr() + count * kPage < entry.vaddr() ||
        entry.vaddr() < last_end) {
      return InvalidArgument(name + ": runs of pages that overlap or never end");
    }
    last_end = entry.vaddr() + count * kPage;
    if ((Flags(entry) & kPresent) == 0) continue;
    memory.runs_.push_back(
        {.begin = entry.vaddr(), .end = last_end, .offset = memory.saved_bytes_});
    memory.saved_bytes_ += count * kPage;
  }
  return memory;
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
    RETURN_IF_ERROR(images_.ReadAt(pages_name_, run->offset + (address - run->begin),
                                   std::as_writable_bytes(std::span(bytes.data() + had, size))));
    address += size;
  }
  return bytes;
}

}  // namespace stasis::archive
