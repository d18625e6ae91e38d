#include "cri/proxy/unary_relay.h"

#include <algorithm>
#include <array>
#include <utility>

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

class UnaryRelay : public ServerCall {
 public:
  UnaryRelay(std::unique_ptr<ClientEnd> client, const Forwarding& to)
      : ServerCall(std::move(client), to.count), to_(to) {
    ForwardRequest(context(), context().host(), call_);
    this->client().Read(&request_, asked_.Begin());
  }

 private:
  void Asked(bool ok) {
    if (!ok) {
      client().Finish(grpc::Status(grpc::StatusCode::INTERNAL, "the call has no request message"),
                      finished_.Begin());
      return;
    }
    if (to_.filters.request) to_.filters.request(request_);
    runtime_ = to_.stub.PrepareUnaryCall(&call_, context().method(), request_, &to_.queue);
    runtime_->StartCall();
    runtime_->Finish(&response_, &status_, answered_.Begin());
  }

  void Answered(bool /*ok*/) {
    ForwardInitialMetadata(call_, context());
    ForwardTrailingMetadata(call_, status_, context());
    if (!status_.ok() || !response_.Valid()) {
      client().Finish(status_, finished_.Begin());
      return;
    }
    if (to_.filters.response) to_.filters.response(response_);
    client().WriteAndFinish(response_, {}, status_, finished_.Begin());
  }

  void Finished(bool /*ok*/) {}

  void Cancelled() override { call_.TryCancel(); }

  const Forwarding to_;
  grpc::ClientContext call_;
  std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> runtime_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
  grpc::Status status_;
  Step<UnaryRelay, &UnaryRelay::Asked> asked_{this};
  Step<UnaryRelay, &UnaryRelay::Answered> answered_{this};
  Step<UnaryRelay, &UnaryRelay::Finished> finished_{this};
};

}  // namespace

bool IsUnary(std::string_view method) {
  constexpr std::string_view kRuntime = "/runtime.v1.RuntimeService/";
  constexpr std::string_view kImage = "/runtime.v1.ImageService/";
  if (method.starts_with(kRuntime)) return Holds(kRuntimeMethods, method.substr(kRuntime.size()));
  return method.starts_with(kImage) && Holds(kImageMethods, method.substr(kImage.size()));
}

void StartUnaryRelay(std::unique_ptr<ClientEnd> client, const Forwarding& to) {
  new UnaryRelay(std::move(client), to);  // deletes itself
}

}  // namespace stasis::cri
