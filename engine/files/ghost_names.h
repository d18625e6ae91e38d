// The names that a deleted file had: each open file of it comes back by the one that it was opened by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// Folders above a path that are gone with it, there again for a moment: a link in /proc shows the whole path
/// of a deleted file.
class GoneFolders {
 public:
  explicit GoneFolders(FileActor& actor) : actor_(actor) {}
  GoneFolders(const GoneFolders&) = delete;
  GoneFolders& operator=(const GoneFolders&) = delete;
  ~GoneFolders() { (void)Remove(); }  // already reporting worse

  Status Make(const std::string& path);
  Status Remove();

 private:
  FileActor& actor_;
  std::vector<std::string> made_;
};

/// Opens ghost file `number`, which still has the name that `first` had, as `fd`, by all other names and through
/// all other mounts that files of the tree had it open by; kept for GhostAs(). What is not possible is noted. Paths are
/// those of the mount namespace of `first` again afterwards.
Status KeepOtherNames(int fd, std::uint32_t number, const image::RegFileEntry& first,
                      FileRestoreContext& context);

/// Ghost file `number` as `reg` had it open, O_PATH; -1: not by another name than the first. Owned by the context.
int GhostAs(const image::RegFileEntry& reg, std::uint32_t number, FileRestoreContext& context);

}  // namespace stasis::engine
