#include "cri/proxy/unary_relay.h"

#include <algorithm>
#include <array>

#include "cri/proxy/metadata.h"

namespace stasis::cri {
namespace {

// CRI v1 up to Kubernetes 1.37; the streaming ones begin with "Stream", or are GetContainerEvents.
constexpr std::array<std::string_view, 31> kRuntimeMethods = {
    "Attach",
    "CheckpointContainer",
    "CheckpointPod",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "Exec",
    "ExecSync",
    "ListContainerStats",
    "ListContainers",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "RemoveContainer",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RestorePod",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
};
constexpr std::array<std::string_view, 5> kImageMethods = {
    "ImageFsInfo", "ImageStatus", "ListImages", "PullImage", "RemoveImage",
};

template <std::size_t N>
bool Holds(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

class UnaryRelay : public grpc::ServerGenericBidiReactor {
 public:
  UnaryRelay(grpc::GenericCallbackServerContext* context, grpc::GenericStub& stub,
             const RelayFilters* filters)
      : context_(context), stub_(stub), filters_(filters) {
    ForwardRequest(*context, context->host(), call_);
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::INTERNAL, "the call has no request message"));
      return;
    }
    if (filters_->request) filters_->request(request_);
    stub_.UnaryCall(&call_, context_->method(), {}, &request_, &response_,
                    [this](const grpc::Status& status) { Answer(status); });
  }

  void OnCancel() override { call_.TryCancel(); }
  void OnDone() override { delete this; }

 private:
  void Answer(const grpc::Status& status) {
    ForwardInitialMetadata(call_, *context_);
    ForwardTrailingMetadata(call_, status, *context_);
    if (!status.ok() || !response_.Valid()) {
      Finish(status);
      return;
    }
    if (filters_->response) filters_->response(response_);
    StartWriteAndFinish(&response_, {}, status);
  }

  grpc::GenericCallbackServerContext* context_;
  grpc::GenericStub& stub_;
  const RelayFilters* filters_;
  grpc::ClientContext call_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
};

}  // namespace

bool IsUnary(std::string_view method) {
  constexpr std::string_view kRuntime = "/runtime.v1.RuntimeService/";
  constexpr std::string_view kImage = "/runtime.v1.ImageService/";
  if (method.starts_with(kRuntime)) return Holds(kRuntimeMethods, method.substr(kRuntime.size()));
  return method.starts_with(kImage) && Holds(kImageMethods, method.substr(kImage.size()));
}

grpc::ServerGenericBidiReactor* StartUnaryRelay(grpc::GenericCallbackServerContext* context,
                                                grpc::GenericStub& stub,
                                                const RelayFilters* filters) {
  return new UnaryRelay(context, stub, filters);
}

}  // namespace stasis::cri
