// Names for files that have lost the one they were opened by, and still have others.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/base/user_ids.h"
#include "engine/image/schema/files.pb.h"

namespace stasis::engine {

/// How such names begin, as CRIU has it.
inline constexpr std::string_view kLinkPrefix = "link_remap.";

/// Hard links that keep inodes until a restore opens and removes them. They are planned while the dump
/// reads, made when the checkpoint is whole, and taken back unless that is committed: a failed dump
/// leaves nothing. A checkpoint that is thrown away leaves them, under kLinkPrefix, to whoever does.
class KeptLinks {
 public:
  KeptLinks() = default;
  KeptLinks(const KeptLinks&) = delete;
  KeptLinks& operator=(const KeptLinks&) = delete;
  ~KeptLinks() { TakeBack(); }

  /// Of the tree, who could have made them (see AsRootOf); else we do.
  void SetUsers(const UserIds& ids) { ids_ = ids; }
  /// A name in the folder of `path`, below the directory `root_fd`, for what `fd` has open. Unimplemented:
  /// there can be none (another file system, or one to be read only).
  Result<std::string> Plan(int root_fd, const std::string& path, int fd);
  /// Gives the planned names that are in memory (tmpfs): what is there may be saved before all is whole.
  Status MakeInMemory();
  /// Gives the planned names.
  Status Make();
  /// The names stay.
  void Commit() {
    made_ = 0;
    links_.clear();
  }

 private:
  struct Link {
    UniqueFd file, folder;
    std::string name;
  };
  Status MakeTo(std::size_t count);
  Status LinkTo(std::size_t count);
  void TakeBack();

  UserIds ids_;
  std::vector<Link> links_;
  std::size_t made_ = 0;  // the first so many exist
};

/// Removes the link `path` below `root_fd`, if its name is one of ours.
Status RemoveKeptLink(int root_fd, const std::string& path);

}  // namespace stasis::engine
