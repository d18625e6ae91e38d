// What a forked process keeps of its parent's memory: pages that both have alike stay one page.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/base/status.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_pages.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

class Inheritance {
 public:
  /// Nothing is kept.
  Inheritance() = default;
  /// The private areas that `parent` and `own` have alike, with the pages that the parent has in them.
  Inheritance(const MemoryLayout& parent, const PageSet& parent_pages, const MemoryLayout& own);

  /// By rising address.
  const std::vector<AddressRange>& areas() const { return areas_; }
  bool Has(const AreaImage& area) const;
  /// The parent's pages in `range`, which is one of the areas or has none of them; by rising address.
  std::vector<AddressRange> PagesIn(const AddressRange& range) const;
  /// The parent's pages in all areas.
  const std::vector<AddressRange>& pages() const { return pages_; }

 private:
  std::vector<AddressRange> areas_;
  std::vector<AddressRange> pages_;
};

/// Takes from `process` the inherited pages that `own` lacks.
Status DropPages(RestoredProcess& process, const Inheritance& inherited, const PageSet& own);

}  // namespace stasis::engine
