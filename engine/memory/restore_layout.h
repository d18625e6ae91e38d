// What mm-PID.img says of an address space, checked before any of it is made.
#pragma once

#include <linux/mman.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/checkpoint_images.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/memory/page_size.h"

namespace stasis::engine {

/// First address that no program can use: TASK_SIZE with 4-level page tables, and with 5-level ones for
/// programs that did not ask for more (arch/x86/include/asm/page_64_types.h).
inline constexpr std::uint64_t kTaskSize = 0x7fff'ffff'f000;

/// Addresses from `start` up to but not including `end`.
struct AddressRange {
  std::uint64_t start = 0;
  std::uint64_t end = 0;

  std::uint64_t size() const { return end - start; }
  bool empty() const { return end <= start; }
  bool Contains(const AddressRange& other) const {
    return start <= other.start && other.end <= end;
  }
  bool Overlaps(const AddressRange& other) const { return start < other.end && other.start < end; }
  bool operator==(const AddressRange&) const = default;
};

/// MAP_HUGETLB and the size of the pages, of mmap(2)'s flags.
inline constexpr std::uint32_t kHugePageFlags = MAP_HUGETLB | std::uint32_t{MAP_HUGE_MASK}
                                                                  << MAP_HUGE_SHIFT;

/// "7f0000000000-7f0000001000", as in /proc/PID/maps.
std::string ToText(const AddressRange& range);

/// The lowest start of `size` bytes within `within` that touch none of `busy` (in any order).
std::optional<std::uint64_t> FindGap(std::vector<AddressRange> busy, std::uint64_t size,
                                     const AddressRange& within);

/// One area to be mapped, as its image says.
struct AreaImage {
  enum class Kind {
    kAnonymous,
    kPrivateFile,
    kSharedFile,
    kSharedAnonymous,
    kSystemV,
    kSocket,
    kRing
  };

  AddressRange range;
  Kind kind = Kind::kAnonymous;
  int prot = 0;
  int map_flags = 0;  ///< For mmap(2), without MAP_FIXED_NOREPLACE and MAP_LOCKED.
  std::uint64_t object =
      0;  ///< Of a file, a System V segment: its id; of shared memory: its number.
  std::uint64_t offset = 0;  ///< In the object, bytes.
  int open_flags = 0;  ///< How to open the file, or to attach the segment: O_RDONLY or O_RDWR.
  std::uint64_t advice = 0;  ///< Bit 1 << N for each advice N of madvise(2).
  bool locked = false;
  bool droppable = false;  ///< MAP_DROPPABLE: its content is not kept.
};

struct MemoryLayout {
  std::vector<AreaImage> areas;  ///< By rising address.
  AddressRange vvar = {};        ///< All of the vDSO's data pages.
  AddressRange vdso = {};
  std::vector<AddressRange> aio_rings = {};  ///< Each is one of the areas, too.
  std::vector<AddressRange> guards = {};     ///< MADV_GUARD_INSTALL, within areas.
};

/// What the kernel calls anonymous shared memory, shmem_zero_setup(); its name in images.
inline constexpr std::string_view kZeroFile = "/dev/zero";

/// Shared anonymous memory that CRIU dumped as the nameless memfd that it is inside the kernel: the number
/// of the object for each file id.
using ZeroFiles = std::map<std::uint64_t, std::uint64_t>;

/// The inodes of memfds that are open or privately mapped: those among them that are anonymous shared memory
/// are made as files, all others of it by the memory's restore.
std::set<std::uint64_t> OpenZeroFiles(const CheckpointImages& images);

/// The MEMFD entries of `images` that are such memory.
Result<ZeroFiles> ReadZeroFiles(const CheckpointImages& images, const ImageSource& source);

/// InvalidArgument for areas that contradict each other or no program could have; Unimplemented for kinds
/// of memory that we cannot restore; ResourceExhausted for more areas than vm.max_map_count allows.
Result<MemoryLayout> ReadLayout(const image::MmEntry& mm, const ZeroFiles& zero_files,
                                const AddressRange& our_area);

/// The number in file /proc/sys/vm/`name`.
Result<std::uint64_t> VmSysctl(const std::string& name);

}  // namespace stasis::engine
