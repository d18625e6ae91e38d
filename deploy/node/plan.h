// What an installation is to write, and what was there before.
#pragma once

#include "deploy/node/installer.h"
#include "deploy/node/journal.h"

namespace stasis::node {

/// The journal of the installation that `request` wants, where `old` is the one of what is there.
/// FailedPrecondition: somebody has to decide something first.
Result<Journal> MakePlan(const NodeFiles& files, const InstallRequest& request, const Journal& old);

/// What `change.path`, which somebody else has changed to `now` since, is to be without us.
Result<MaybeContent> WithoutUs(const Change& change, const Content& now);

/// The folder of the agent's programs on the node.
std::string ProgramsOf(const std::string& release);
/// The name of the release in the folder `from`, "" for the programs of a package.
std::string ReleaseName(const std::string& from);

inline constexpr const char* kReleases = "/opt/stasis/releases";

}  // namespace stasis::node
