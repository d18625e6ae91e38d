// What was done to a node, so that it can be gone on with after a kill and undone byte for byte.
#pragma once

#include <string>
#include <vector>

#include "deploy/node/distribution.h"
#include "deploy/node/node_files.h"

namespace stasis::node {

inline constexpr const char* kJournalFolder = "/var/lib/stasis/node";

enum class Phase {
  kAbsent,        ///< There is no journal.
  kInstalling,    ///< Begun, not known to be whole.
  kInstalled,     ///< The kubelet talks to stasisd.
  kBypassed,      ///< Installed, but the kubelet was sent back to its runtime.
  kUninstalling,  ///< Being undone.
};
std::string NameOf(Phase phase);

struct Change {
  std::string path;
  bool sends_kubelet = false;  ///< To us: first to be undone, last to be made.
  Syntax syntax = Syntax::kFile;
  MaybeContent before = {}, after = {};

  /// Of files, links are followed to the one that is meant; a link is itself what is meant.
  bool FollowsLinks() const { return !after || !after->is_link; }
};

struct Journal {
  Phase phase = Phase::kAbsent;
  std::string distribution = {}, service = {}, runtime_endpoint = {}, release = {};
  std::string reason = {};  ///< Of a bypass.
  std::vector<Change> changes = {};
  std::vector<std::string> made_folders;  ///< Uppermost first.

  const Change* Find(const std::string& path) const;
};

/// An empty journal when there is none. DataLoss: it cannot be read.
Result<Journal> LoadJournal(const NodeFiles& files);
/// On the disk when this returns.
Status SaveJournal(const NodeFiles& files, const Journal& journal);
Status RemoveJournal(const NodeFiles& files);

}  // namespace stasis::node
