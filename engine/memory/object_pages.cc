// Source  lseek(2) SEEK_DATA; mapping_seek_hole_data() in mm/filemap.c; tested on 6.18
// Rule    SEEK_HOLE looks at every page up to a hole, wherever that is: 25 ms for 1 GiB. Of what is left between known
//         pages each is asked for by itself instead (SEEK_DATA gives the place that it was given, if there is one).
#include "engine/memory/object_pages.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

namespace stasis::engine {
namespace {

// The first place from `at` on that has, or has no, page; nothing when there is none.
Result<std::optional<std::uint64_t>> Seek(int fd, std::uint64_t at, int whence) {
  const off_t found = ::lseek(fd, static_cast<off_t>(at), whence);
  if (found >= 0) return std::optional(static_cast<std::uint64_t>(found));
  if (errno == ENXIO)
    return std::optional<std::uint64_t>();  // behind the end, or only a hole is left
  return SyscallError(errno, "lseek in shared memory");
}

// What ends within a page has the rest of that page too.
std::uint64_t EndOfPage(std::uint64_t at) { return (at + kPageBytes - 1) & ~(kPageBytes - 1); }

Result<PageRanges> AllPages(int fd, std::uint64_t size) {
  PageRanges ranges;
  for (std::uint64_t at = 0; at < size;) {
    ASSIGN_OR_RETURN(const auto data, Seek(fd, at, SEEK_DATA));
    if (!data) break;
    ASSIGN_OR_RETURN(const auto hole, Seek(fd, *data, SEEK_HOLE));
    at = hole.value_or(size);
    Append(ranges, {*data, EndOfPage(at)});
  }
  return ranges;
}

}  // namespace

Result<PageRanges> PagesOfObject(int fd, const PageRanges& known) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) {
    return SyscallError(errno, "fstat of shared memory");
  }
  const auto size = static_cast<std::uint64_t>(st.st_size);
  if (known.empty()) return AllPages(fd, size);
  PageRanges pages;
  for (const PageRange& rest : Subtract({{0, EndOfPage(size)}}, known)) {
    for (std::uint64_t at = rest.start; at < rest.end;) {
      ASSIGN_OR_RETURN(const auto data, Seek(fd, at, SEEK_DATA));
      if (!data) return pages;
      at = *data + kPageBytes;
      if (*data < rest.end) Append(pages, {*data, at});
    }
  }
  return pages;
}

}  // namespace stasis::engine
