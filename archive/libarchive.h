// Owners and errors of libarchive's objects.
#pragma once

#include <archive.h>
#include <archive_entry.h>

#include <memory>
#include <string_view>

#include "engine/base/status.h"

namespace stasis::archive {

struct FreeHandle {
  void operator()(struct archive* handle) const { archive_free(handle); }
  void operator()(struct archive_entry* entry) const { archive_entry_free(entry); }
};
using ReadHandle = std::unique_ptr<struct archive, FreeHandle>;
using WriteHandle = std::unique_ptr<struct archive, FreeHandle>;
using EntryHandle = std::unique_ptr<struct archive_entry, FreeHandle>;

/// Decompression by libraries only: libarchive's other filters would start programs.
Status SupportFilters(struct archive* reader);

/// What libarchive says, with the errno that it kept where that tells more than `code`.
Status LibarchiveError(struct archive* handle, StatusCode code, std::string_view what);

}  // namespace stasis::archive
