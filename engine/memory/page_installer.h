// Pages that are put into the memory of another process without its page faults.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/memory/restore_layout.h"
#include "engine/memory/restore_pages.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// While there is one, what the process itself touches in these areas and is not there yet fails.
class PageInstaller {
 public:
  /// For `areas` of `process`, which are private anonymous memory. What a kernel or its policy says when there cannot
  /// be one: memory can be filled otherwise.
  static Result<PageInstaller> Make(RestoredProcess& process, std::span<const AddressRange> areas);

  /// Puts `bytes` at `address` of an area, until it comes to a page that is there already: how many bytes. May be
  /// called by several threads. ResourceExhausted: no memory, or the process's cgroup may not have more.
  Result<std::size_t> Install(std::uint64_t address, std::span<const std::byte> bytes) const;

 private:
  explicit PageInstaller(UniqueFd uffd) : uffd_(std::move(uffd)) {}

  UniqueFd uffd_;  // once it is closed, the areas are as others
};

/// The areas of `layout` that are worth one: private anonymous memory with much of `pages`, and with nothing in it yet,
/// which areas that are `inherited` have. None where faults would make huge pages of all memory, unless the process
/// has them switched off (`no_huge_pages`).
std::vector<AddressRange> InstallableAreas(const MemoryLayout& layout, const PageSet& pages,
                                           const std::vector<AddressRange>& inherited,
                                           bool no_huge_pages);

}  // namespace stasis::engine
