// Memory content: pagemap-ID.img says which pages there are, pages-N.img holds them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/memory/restore_layout.h"

namespace stasis::engine {

/// The pages of one process or shared memory object. In the pages file they follow each other in the
/// order of `runs`.
struct PageSet {
  std::string pages_file;
  std::vector<AddressRange> runs;  ///< By rising address, or offset in the object; none is empty.

  std::uint64_t pages() const;
};

/// Reads pagemap file `name`. DataLoss: it is missing or broken, or its pages file is not as long as it
/// says. Unimplemented: pages of it are in another checkpoint.
Result<PageSet> ReadPageSet(const ImageSource& source, const std::string& name);

/// Where a part of a PageSet goes to.
struct PageTarget {
  enum class Way {
    kCopy,    ///< Into memory that is writable there: process_vm_writev(2).
    kForce,   ///< Whatever the protection: /proc/PID/mem. Private memory only.
    kUpdate,  ///< As kForce, pages that are so already excepted.
    kSkip,    ///< Nowhere.
  };
  AddressRange range;         ///< Of the PageSet.
  std::uint64_t address = 0;  ///< Of its first byte in the process.
  Way way = Way::kCopy;
};

/// InvalidArgument when a page of `set` belongs to none of `targets`, which are in rising order.
Status CheckPlaces(const PageSet& set, std::span<const PageTarget> targets);

/// All of `set` that lies in `range`, whole, or nothing when a page of it is missing there.
Result<std::vector<std::byte>> ReadPages(const ImageSource& source, const PageSet& set,
                                         const AddressRange& range);

/// Writes `set`, which passed CheckPlaces, into process `pid`; `mem_fd` is its /proc/PID/mem.
/// `on_pages` hears of pages as they are done.
Status WritePages(const ImageSource& source, const PageSet& set,
                  std::span<const PageTarget> targets, pid_t pid, int mem_fd,
                  const std::function<void(std::uint64_t)>& on_pages);

}  // namespace stasis::engine
