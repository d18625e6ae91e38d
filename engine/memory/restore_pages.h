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

class PageInstaller;

/// The pages of one process or shared memory object, by rising address, or offset in the object.
struct PageSet {
  /// Pages that follow each other in a file too.
  struct Extent {
    AddressRange range;        ///< Not empty.
    std::size_t file = 0;      ///< Index in `files`.
    std::uint64_t offset = 0;  ///< In that file, bytes.
    bool lazy = false;         ///< The program may run before it is there.
  };
  std::vector<std::string> files;  ///< Names in the source.
  std::vector<Extent> extents;
  std::vector<AddressRange> runs;  ///< The extents' ranges, joined where they touch.

  void Add(const Extent& extent);
};

/// Reads pagemap file `name`, and those of the same name in "parent/" for the pages that an incremental
/// checkpoint took from there. DataLoss: one is missing or broken, or a pages file is not as long as it says.
Result<PageSet> ReadPageSet(const ImageSource& source, const std::string& name);

/// Where a part of a PageSet goes to.
struct PageTarget {
  enum class Way {
    kCopy,     ///< Into memory that is writable there: process_vm_writev(2).
    kInstall,  ///< As kCopy, by a PageInstaller that has this area.
    kForce,    ///< Whatever the protection: /proc/PID/mem. Private memory only.
    kUpdate,   ///< As kForce, pages that are so already excepted.
    kSkip,     ///< Nowhere.
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
/// `installer`: null where no target is kInstall. `on_pages` hears of pages as they are done.
Status WritePages(const ImageSource& source, const PageSet& set,
                  std::span<const PageTarget> targets, pid_t pid, int mem_fd,
                  const std::function<void(std::uint64_t)>& on_pages,
                  const PageInstaller* installer = nullptr);

}  // namespace stasis::engine
