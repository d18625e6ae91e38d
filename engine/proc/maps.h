// Text of /proc/PID/smaps (or maps) into structs.
#pragma once

#include <absl/container/inlined_vector.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

/// What io_uring(7) is called in memory and among descriptors; all rings are.
inline constexpr std::string_view kRingLink = "anon_inode:[io_uring]";

/// Two-letter VmFlags of smaps, in order ("rd", "wr", "mr", …).
class VmFlags {
 public:
  void Add(std::string_view flag) { letters_.insert(letters_.end(), flag.begin(), flag.end()); }
  bool Has(std::string_view flag) const { return Find(flag) != letters_.size(); }
  void Erase(std::string_view flag);
  void KeepOnly(std::initializer_list<std::string_view> flags);
  std::string_view letters() const { return {letters_.data(), letters_.size()}; }
  bool operator==(const VmFlags&) const = default;

 private:
  std::size_t Find(std::string_view flag) const;
  absl::InlinedVector<char, 24> letters_;  // one flag behind the other
};

/// One area of a task's memory, proc_pid_maps(5) and proc_pid_smaps(5).
struct Vma {
  std::uint64_t start = 0;   ///< Bytes, page-aligned.
  std::uint64_t end = 0;     ///< Exclusive.
  std::uint32_t prot = 0;    ///< PROT_READ | PROT_WRITE | PROT_EXEC
  bool shared = false;       ///< 's', else 'p'
  std::uint64_t offset = 0;  ///< In the file, bytes.
  std::uint32_t dev_major = 0, dev_minor = 0;
  std::uint64_t inode = 0;
  std::string path;  ///< As printed, octal escapes (\012) undone; "[heap]", "" for anonymous.
  VmFlags flags;     ///< Empty when read from maps.
  std::uint64_t kernel_page_size = 0;  ///< Bytes; 0 when read from maps.
  int protection_key = 0;
  /// Bytes of pages that others have too (Shared_Clean, Shared_Dirty) or that are swapped out; 0 when read
  /// from maps.
  std::uint64_t shared_or_swapped = 0;
  std::uint64_t resident = 0;  ///< Bytes (Rss, without the zero page); 0 when read from maps.

  std::uint64_t size() const { return end - start; }
  bool Has(std::string_view flag) const { return flags.Has(flag); }
};

Result<std::vector<Vma>> ParseMaps(std::string_view text);   ///< /proc/PID/maps
Result<std::vector<Vma>> ParseSmaps(std::string_view text);  ///< /proc/PID/smaps

/// Of the process whose directory /proc/PID `proc_fd` is. For smaps the kernel looks at every page. `expected`: how many
/// areas it may have, if that is known.
Result<std::vector<Vma>> ReadMaps(int proc_fd, std::size_t expected = 0);
Result<std::vector<Vma>> ReadSmaps(int proc_fd);
/// The same, one after the other: of some ten thousand few are of interest. Until `take` gives an error.
using TakeVma = std::function<Status(Vma& vma)>;
Status EachOfMaps(int proc_fd, const TakeVma& take);
Status EachOfSmaps(int proc_fd, const TakeVma& take);

}  // namespace stasis::engine
