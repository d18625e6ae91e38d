// The content of a tmpfs of a container, as CRIU keeps it beside its images (tmpfs-dev-N.tar.gz.img):
// a tar, compressed by gzip. Owners, modes, times, extended attributes, hard links and holes are in it; sockets
// are not, which live in the kernel and get their names back by bind(2).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"

namespace stasis::archive {

/// All that the file system of the folder `fd` (open for reading) has below it; folders on which
/// something is mounted are empty. Owners are as in the user namespace of `ids`. ResourceExhausted: its regular files
/// have over `max_bytes`.
Result<std::string> ReadTmpfsContent(int fd, std::uint64_t max_bytes, const UserIds& ids = {});

struct TmpfsRestoreReport {
  /// What was there already, and stays as it is.
  std::vector<std::string> kept;
  /// What is not as it was, a sentence each.
  std::vector<std::string> notes;
};

/// What the owner of a tmpfs that is made again could have put into it.
struct TmpfsRights {
  bool devices = false;
  bool capabilities = false;
};

/// Puts what ReadTmpfsContent gave, or another tar of plain files, folders and FIFOs, into the folder `fd`.
/// Nothing outside of it is touched, whatever the tar says, and nothing in it is replaced. InvalidArgument:
/// an entry that climbs out or is of another type; ResourceExhausted: more than `max_bytes`; FailedPrecondition: an
/// owner that the user namespace of `ids` does not have.
Result<TmpfsRestoreReport> RestoreTmpfsContent(int fd, std::string_view tar,
                                               std::uint64_t max_bytes, const UserIds& ids = {});

/// The same into a tmpfs that is new and the tar's alone: its root gets the owner and mode that it had, and links,
/// devices and extended attributes come back as far as `rights` goes.
Result<TmpfsRestoreReport> RestoreWholeTmpfs(int fd, std::string_view tar, std::uint64_t max_bytes,
                                             const TmpfsRights& rights, const UserIds& ids = {});

}  // namespace stasis::archive
