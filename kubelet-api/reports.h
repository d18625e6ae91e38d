// What the agent tells the cluster by itself: Events on pods, and what its node can do.
#pragma once

#include <memory>
#include <string>

#include "cri/agent.h"
#include "engine/base/status.h"
#include "kubelet-api/events/event_writer.h"
#include "kubelet-api/node/node_reporter.h"

namespace stasis::kubelet_api {

struct ReportOptions {
  ApiServerOptions api_server;  ///< Without one, nothing is told.
  bool events = true;
  std::string node;  ///< Name of the Node object; empty: it is left alone.
  std::string version;
};

class Reports {
 public:
  /// InvalidArgument: options that make no sense.
  static Result<Reports> Start(const ReportOptions& options);

  /// To be told of pods, before the agent is there and until it has gone; null: nobody.
  cri::PodEvents* events() { return events_.get(); }
  /// Tells about the node until EndNode, which takes it back. `agent` outlives that.
  void BeginNode(cri::Agent& agent);
  void EndNode() { node_.reset(); }

 private:
  explicit Reports(ReportOptions options) : options_(std::move(options)) {}

  const ReportOptions options_;
  std::unique_ptr<EventWriter> events_;
  std::unique_ptr<NodeReporter> node_;
};

}  // namespace stasis::kubelet_api
