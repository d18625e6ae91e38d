#include "engine/memory/page_runs.h"

#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"

namespace stasis::engine {

std::vector<PageRun> MergeRuns(const PageRanges& a, std::uint32_t a_flags, const PageRanges& b,
                               std::uint32_t b_flags) {
  std::vector<PageRun> runs;
  auto x = a.begin(), y = b.begin();
  while (x != a.end() || y != b.end()) {
    const bool take_x = y == b.end() || (x != a.end() && x->start < y->start);
    runs.push_back(take_x ? PageRun{*x++, a_flags} : PageRun{*y++, b_flags});
  }
  return runs;
}

Status WritePageRuns(ImageSink& sink, std::string_view name, std::string_view type,
                     std::uint32_t pages_id, const std::vector<PageRun>& runs) {
  ImageFileBuilder file(type);
  image::PagemapHead head;
  head.set_pages_id(pages_id);
  RETURN_IF_ERROR(file.Add(head));
  for (const PageRun& run : runs) {
    image::PagemapEntry entry;
    entry.set_vaddr(run.pages.start);
    // Readers before CRIU 4.2 know the first count only.
    entry.set_compat_nr_pages(static_cast<std::uint32_t>(run.pages.page_count()));
    entry.set_nr_pages(run.pages.page_count());
    entry.set_flags(run.flags);
    RETURN_IF_ERROR(file.Add(entry));
  }
  return sink.Put(name, file.bytes());
}

}  // namespace stasis::engine
