// Works on the files of a container's root without ever leaving it.
//
// Paths are those of strangers, and links in the root are a container's. openat2(2) with
// RESOLVE_IN_ROOT lets links lead where they would inside the container, never out; RESOLVE_NO_XDEV
// keeps off its mounts.
#pragma once

#include <sys/types.h>

#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "archive/left_out_paths.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {

/// A name in a folder of the root. The name's own file may be missing, or be a link: it is not
/// followed.
struct Place {
  int folder = -1;  ///< O_PATH; valid until the next Find.
  std::string name;
  std::string path;  ///< From the root, with no link in its folders.
};

class ConfinedRoot {
 public:
  /// `root_fd` must stay open. `leave_out`: absolute paths that Find refuses.
  ConfinedRoot(int root_fd, const std::vector<std::string>& leave_out);

  enum class Parents { kMustExist, kMake };

  /// Where `path` is. NotFound: a folder of it is missing. OutOfRange: the place is a mount, below
  /// one, or above one that is left out, so it is not to be changed. InvalidArgument: a path that
  /// climbs or loops.
  Result<Place> Find(const std::string& path, Parents parents);

  /// Removes what is at `place` with all below it but the files noted as placed. OK when nothing is
  /// there.
  Status Remove(const Place& place);

  /// The same for all that the folder at `place` holds.
  Status RemoveContent(const Place& place);

  /// Notes that the file at `place` is part of what is being applied.
  Status NotePlaced(const Place& place);

 private:
  Result<UniqueFd> OpenFolder(const std::string& path) const;
  Result<UniqueFd> MakeFolder(const std::string& path);
  Result<std::string> PathOf(int folder) const;
  Status RemoveTree(int folder, const std::string& name, const std::string& path, int depth);
  Status RemoveChildren(int folder, const std::string& path, int depth);

  const int root_fd_;
  const LeftOutPaths left_out_;
  std::set<std::pair<dev_t, ino_t>> placed_;
  // The folder of the last place: entries of one folder come one after the other.
  std::string folder_path_;
  std::string folder_real_path_;
  UniqueFd folder_;
  bool folder_is_stale_ = false;
};

}  // namespace stasis::archive
