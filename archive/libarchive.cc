#include "archive/libarchive.h"

#include <cerrno>
#include <string>

namespace stasis::archive {

Status SupportFilters(struct archive* reader) {
  // ARCHIVE_WARN: this libarchive was built without the library and would run the program.
  if (archive_read_support_filter_gzip(reader) != ARCHIVE_OK ||
      archive_read_support_filter_zstd(reader) != ARCHIVE_OK ||
      archive_read_support_filter_bzip2(reader) != ARCHIVE_OK ||
      archive_read_support_filter_xz(reader) != ARCHIVE_OK) {
    return Unimplemented("this libarchive lacks gzip, zstd, bzip2 or xz");
  }
  return OkStatus();
}

Status LibarchiveError(struct archive* handle, StatusCode code, std::string_view what) {
  const char* const text = archive_error_string(handle);
  if (archive_errno(handle) == ENOSPC) return SyscallError(ENOSPC, what);
  return MakeStatus(code, std::string(what) + ": " + (text != nullptr ? text : "damaged"));
}

}  // namespace stasis::archive
