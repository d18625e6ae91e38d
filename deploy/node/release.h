// The agent's programs with the libraries that they were built with, one folder a release, so that an
// upgrade never has the libraries of the one and the programs of the other.
#pragma once

#include <string>
#include <vector>

#include "deploy/node/node_files.h"

namespace stasis::node {

/// Copies the folder `from` of this process to the releases of the node; whole there or not at all.
/// Nothing to do for "" and for a release that is there.
Status CopyRelease(const NodeFiles& files, const std::string& from);

/// What cannot be removed stays: it is in nobody's way.
void RemoveReleasesBut(const NodeFiles& files, const std::vector<std::string>& kept);

/// All releases, what stasisd remembered of restored containers unless one runs, and its credentials.
void RemoveReleases(const NodeFiles& files);

}  // namespace stasis::node
