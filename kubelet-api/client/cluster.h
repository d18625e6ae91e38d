// Checkpoints as a user of a cluster asks for them: of pods, by the agents of their nodes or by their kubelets.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "kubelet-api/client/kubectl.h"

namespace stasis::kubelet_api {

struct Node {
  std::string name;
  std::string address;
};

struct Pod {
  std::string name;
  Node node;
  std::vector<std::string> running;  ///< Its containers.
  std::vector<std::string>
      ephemeral;  ///< Those that run to debug it (kubectl debug): meant only by name.
};

struct CheckpointWishes {
  int timeout_seconds = 0;  ///< 0: the node's own.
  /// As stasisd's --compress, for a query; empty: the node's own. By the agent alone.
  std::string compression;
};

struct MadeCheckpoint {
  std::string path;       ///< On the node.
  nlohmann::json report;  ///< What the agent tells of it; of the kubelet nothing.
};

enum class Via { kAuto, kAgent, kKubelet };

struct ClusterOptions {
  std::vector<std::string> flags;  ///< kubectl's own.
  std::string pod_namespace;       ///< Empty: the one of kubectl's context.
  int agent_port = 10260;
  std::string agent_ca;  ///< Empty: the cluster's own authority.
  Via via = Via::kAuto;
};

class Cluster {
 public:
  explicit Cluster(ClusterOptions options)
      : options_(std::move(options)), kubectl_(options_.flags) {}

  Result<std::string> Namespace();
  Result<Pod> FindPod(const std::string& name);
  /// PermissionDenied: the user may not list nodes.
  Result<std::vector<Node>> Nodes();
  /// Those on which pods of the namespace are.
  Result<std::vector<Node>> NodesOfPods();

  /// Until the pod is ready. DeadlineExceeded: it is not, within `timeout_seconds`.
  Status WaitReady(const std::string& name, int timeout_seconds);

  /// By the agent where it answers and allows it, else by the kubelet: but for what no kubelet does.
  Result<MadeCheckpoint> Checkpoint(const Pod& pod, const std::string& container,
                                    const CheckpointWishes& wishes);

  /// What the agent of `node` answers. From any thread.
  Result<nlohmann::json> Get(const Node& node, const std::string& path) const;
  /// The same of several nodes, asked at the same time, each for at most `timeout_seconds`.
  std::vector<Result<nlohmann::json>> GetAll(const std::vector<Node>& nodes,
                                             const std::string& path, int timeout_seconds) const;
  Result<nlohmann::json> Post(const Node& node, const std::string& path);
  Result<nlohmann::json> Delete(const Node& node, const std::string& path);
  Status Download(const Node& node, const std::string& path, int fd);

 private:
  bool AgentAnswers(const Node& node);
  Kubectl ToAgent(const Node& node) const;

  const ClusterOptions options_;
  const Kubectl kubectl_;
  std::map<std::string, bool> agents_;
};

}  // namespace stasis::kubelet_api
