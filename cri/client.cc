#include "cri/client.h"

#include "cri/proxy/upstream.h"

namespace stasis::cri {

Status CheckpointContainer(const CheckpointCall& call) {
  ASSIGN_OR_RETURN(const auto service, Upstream::Open(call.runtime_endpoint));
  runtime::v1::CheckpointContainerRequest request;
  request.set_container_id(call.container_id);
  request.set_location(call.location);
  request.set_timeout(call.timeout.count());
  CallLimits limits{.deadline = std::chrono::system_clock::time_point::max(), .stop = call.stop};
  if (call.timeout.count() > 0) limits.deadline = std::chrono::system_clock::now() + call.timeout;
  const Status status = Call(&runtime::v1::RuntimeService::Stub::CheckpointContainer,
                             service->containers(), request, limits)
                            .status();
  return status.code() == StatusCode::kUnavailable
             ? Annotate(status, "nobody answers at " + call.runtime_endpoint +
                                    "; is stasisd running, or is --runtime-endpoint another")
             : status;
}

}  // namespace stasis::cri
