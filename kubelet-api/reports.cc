#include "kubelet-api/reports.h"

#include <unistd.h>

#include <array>

#include "kubelet-api/api.h"
#include "kubelet-api/names.h"

namespace stasis::kubelet_api {
namespace {

std::string HostName() {
  std::array<char, 256> name = {};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

Result<Reports> Reports::Start(const ReportOptions& options) {
  RETURN_IF_ERROR(CheckApiServer(options.api_server));
  if (!options.node.empty() && !IsObjectName(options.node)) {
    return InvalidArgument("--node-name '" + options.node + "' is no name of a node");
  }
  if (!options.node.empty() && options.api_server.url.empty()) {
    return InvalidArgument("--node-name needs --api-server, where the node's object is");
  }
  Reports reports(options);
  if (options.events && !options.api_server.url.empty()) {
    try {
      reports.events_ = std::make_unique<EventWriter>(
          options.api_server, options.node.empty() ? HostName() : options.node);
    } catch (const std::exception& error) {
      return Internal(std::string("start the writer of events: ") + error.what());
    }
  }
  return reports;
}

void Reports::BeginNode(cri::Agent& agent) {
  if (options_.node.empty()) return;
  node_ =
      std::make_unique<NodeReporter>(options_.api_server, options_.node, options_.version, agent);
}

}  // namespace stasis::kubelet_api
