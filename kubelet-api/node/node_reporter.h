// What Stasis can do on this node, as labels and a condition of its Node object.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>

#include "cri/agent.h"
#include "engine/host_features.h"
#include "kubelet-api/access/api_server.h"

namespace stasis::kubelet_api {

struct NodeReport {
  std::string agent_version;
  engine::HostFeatures host;
  Status runtime;  ///< Of the container runtime: whether it answers.
};

/// Patches of a Node's status: with all of the report, and with none of it. `since`: when the runtime began to
/// answer, or stopped to.
nlohmann::json PatchOf(const NodeReport& report, std::chrono::system_clock::time_point since,
                       std::chrono::system_clock::time_point now);
nlohmann::json PatchThatTakesBack();

class NodeReporter {
 public:
  /// `node` is the name of its object. `agent` outlives this, and is looked at every `between_looks`.
  NodeReporter(const ApiServerOptions& options, std::string node, std::string agent_version,
               cri::Agent& agent,
               std::chrono::milliseconds between_looks = std::chrono::seconds(10));
  /// Takes labels and condition back, if the API server answers within five seconds.
  ~NodeReporter();

 private:
  void Run(const std::stop_token& stop);
  void Look();
  Status Patch(const nlohmann::json& patch, const std::stop_token& stop);

  const ApiServer api_server_;
  const std::string node_;
  cri::Agent& agent_;
  const std::chrono::milliseconds between_looks_;

  // All of the thread alone.
  NodeReport report_;
  std::chrono::system_clock::time_point since_;
  std::optional<StatusCode> told_;  // of the runtime, as the API server knows it
  std::chrono::steady_clock::time_point told_at_;
  bool may_be_there_ = false;  // what was told, in the API server
  bool has_failed_ = false;

  std::stop_source at_once_;  // ends a question to the API server
  std::jthread thread_;
};

}  // namespace stasis::kubelet_api
