// What a pod of the cluster gives the agent on its node, so that it may serve its API.
#pragma once

#include <string>

#include "deploy/node/node_files.h"

/// Puts the token and the certificates in `folder` where the agent finds them, as far as they are there and
/// new, and returns the agent's options that name them. The token is renewed in the pod's volume, and its copy
/// is gone after a reboot; the agent reads both each time, and starts without the token.
stasis::Result<std::string> HandOver(const stasis::node::NodeFiles& files,
                                     const std::string& folder);
