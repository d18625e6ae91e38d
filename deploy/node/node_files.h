// The files of a node, named as the node names them, wherever its root folder is mounted.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::node {

/// What lies at a path: a file with its content, or a symbolic link with its target.
struct Content {
  bool is_link = false;
  std::string bytes = {};
  mode_t mode = 0644;
  uid_t uid = 0;
  gid_t gid = 0;
  timespec modified = {};  ///< Not compared.

  bool SameAs(const Content& other) const {
    return is_link == other.is_link && bytes == other.bytes;
  }
};

/// Nothing, where nothing lies.
using MaybeContent = std::optional<Content>;
bool Same(const MaybeContent& a, const MaybeContent& b);

class NodeFiles {
 public:
  /// `root` is the folder that is "/" for the node.
  static Result<NodeFiles> Open(const std::string& root);

  /// Whether something lies at `path`, links followed inside the root.
  bool Exists(const std::string& path) const;

  /// The content at `path`. Links on the way are followed inside the root; the last one only with
  /// `follow`. FailedPrecondition: neither a file nor a link. ResourceExhausted: over 1 MiB.
  Result<MaybeContent> Read(const std::string& path, bool follow = true) const;

  /// Puts `content` at `path` in one step that survives a power cut: another file, synced, is
  /// renamed to it. A file there keeps its security label. Without content, `path` is removed.
  Status Put(const std::string& path, const MaybeContent& content) const;

  /// Names in the folder `path`, sorted; none when there is no such folder.
  std::vector<std::string> Names(const std::string& path) const;

  /// The folders on the way to `path` that do not exist, the uppermost first.
  std::vector<std::string> MissingFolders(const std::string& path) const;
  Status MakeFolders(const std::string& path) const;

  /// Removes the folder when it is empty; anything else stays without a word.
  void RemoveEmptyFolder(const std::string& path) const;

  /// Where the node's `path` is for this process: links on the way are followed inside the root, the last
  /// one only with `follow`. What is named last need not exist.
  Result<std::string> Place(const std::string& path, bool follow) const;

  /// The same for a socket, whose folder is no link.
  std::string Here(const std::string& path) const;

 private:
  NodeFiles(std::string root, UniqueFd fd) : root_(std::move(root)), fd_(std::move(fd)) {}

  Result<UniqueFd> OpenInside(const std::string& path, unsigned long flags) const;

  std::string root_;
  UniqueFd fd_;
};

}  // namespace stasis::node
