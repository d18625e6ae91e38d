// The image that a checkpointed container was made of: its files are under those of the checkpoint.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cri/proxy/upstream.h"
#include "cri/restore/credentials.h"
#include "engine/base/status.h"

namespace stasis::cri {

struct BaseImage {
  std::string id;    ///< As CRI wants it in CreateContainer.
  std::string name;  ///< As the archive calls it.
};

/// Finds the base image that `config_dump` names, or pulls it with what credentials the pod of
/// `sandbox` has for its registry. NotFound: it cannot be had, and why.
Result<BaseImage> FindOrPullBaseImage(Upstream& upstream, const Credentials& credentials,
                                      const nlohmann::json& config_dump,
                                      const runtime::v1::PodSandboxConfig& sandbox,
                                      const CallLimits& limits);

}  // namespace stasis::cri
