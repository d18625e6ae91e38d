// The commands of kubectl checkpoint. Each gives the exit code.
#pragma once

#include <string>
#include <vector>

#include "engine/base/status.h"
#include "kubelet-api/client/cluster.h"

namespace stasis::kubectl {

inline constexpr int kExitFailure = 1;  ///< Nothing succeeded.
inline constexpr int kExitUsage = 2;
inline constexpr int kExitPartial = 3;  ///< Some of it did.
inline constexpr int kExitTimeout = 4;  ///< Nothing did in the time that --timeout gave.

struct Options {
  kubelet_api::ClusterOptions cluster;
  std::string via = "auto";
  std::string subject;  // a pod or an archive
  std::vector<std::string> containers;
  std::string node;
  std::string format;
  std::string output;
  std::string image;
  std::string compression;  ///< Empty: what the node says.
  bool wait = false;
  int timeout_seconds = 0;  ///< 0: none was given.
};

/// Says on standard error what went wrong.
int Report(const Status& status);

Result<int> Create(kubelet_api::Cluster& cluster, const Options& options);
Result<int> Check(kubelet_api::Cluster& cluster, const Options& options);
Result<int> List(kubelet_api::Cluster& cluster, const Options& options);
Result<int> Inspect(kubelet_api::Cluster& cluster, const Options& options);
Result<int> Delete(kubelet_api::Cluster& cluster, const Options& options);

/// Path of an archive in an agent's API.
std::string PathOf(const std::string& pod_namespace, const std::string& name);
/// Downloads it to the new file `file`, of which nothing is left on failure.
Status SaveTo(kubelet_api::Cluster& cluster, const kubelet_api::Node& node, const std::string& path,
              const std::string& file);
/// Prints what is shown of checkpoints: name, pod, container, …
void PrintCheckpoints(const nlohmann::json& rows, const std::string& format);

}  // namespace stasis::kubectl
