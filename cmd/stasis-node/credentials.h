// What the chart's pod hands over to the agent on the node, so that it can serve its API.
#pragma once

#include <string>
#include <vector>

#include "deploy/node/installer.h"

struct HandedOver {
  std::string options;  ///< Lines for stasisd.toml that name the files.
  std::vector<stasis::node::Credential> files;
};

/// The credentials in `folder`. `api_server` is the API server's https:// address; "" is the one that every
/// pod is told by its environment. FailedPrecondition: a part is missing without which the agent would serve
/// others than it is meant to, or nobody.
stasis::Result<HandedOver> ReadCredentials(const std::string& folder,
                                           const std::string& api_server);
