// How far a checkpoint is, on one line of a terminal.
#pragma once

#include <stop_token>
#include <string>
#include <thread>

#include "kubelet-api/client/cluster.h"

namespace stasis::kubectl {

/// From its making to its end; silent where standard error is no terminal. It asks the node's agent once a second,
/// and shows no more than that something goes on where that does not answer.
class Progress {
 public:
  /// `cluster` outlives this.
  Progress(const kubelet_api::Cluster& cluster, const kubelet_api::Pod& pod,
           const std::string& pod_namespace, const std::string& container);
  ~Progress();

 private:
  void Run(const kubelet_api::Cluster& cluster, const std::stop_token& stop) const;

  const kubelet_api::Node node_;
  const std::string pod_namespace_, pod_, container_;
  std::jthread thread_;
};

/// "62 % of 1.2 GiB, frozen for 0.1 s", of a list of running checkpoints; empty: this one is not among them.
std::string ProgressText(const nlohmann::json& running, const std::string& pod,
                         const std::string& container);

/// One line for something that takes a while, where standard error is a terminal.
void Say(const std::string& text);

}  // namespace stasis::kubectl
