// The container runtime behind us.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <string>

#include "cri/proxy/handler.h"
#include "cri/schema/containerd_content.grpc.pb.h"
#include "cri/schema/containerd_images.grpc.pb.h"
#include "cri/schema/containerd_leases.grpc.pb.h"
#include "cri/schema/containerd_snapshots.grpc.pb.h"
#include "cri/schema/runtime.grpc.pb.h"
#include "engine/base/status.h"

namespace stasis::cri {

/// gRPC's status in the vocabulary of everything else, and back. The codes are the same numbers.
Status FromGrpc(const grpc::Status& status);
grpc::Status ToGrpc(const Status& status);

Result<grpc::ByteBuffer> Serialize(const google::protobuf::Message& message);
Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message& message);

/// Until when a call to the runtime may take, and who may end it sooner.
struct CallLimits {
  std::chrono::system_clock::time_point deadline = std::chrono::system_clock::time_point::max();
  std::stop_token stop = {};
};

class Upstream {
 public:
  /// Connects to the socket `endpoint` when first called, and again whenever the runtime comes
  /// back, within a second.
  static Result<std::unique_ptr<Upstream>> Open(const std::string& endpoint);

  /// Of its socket.
  const std::string& path() const { return path_; }

  runtime::v1::RuntimeService::Stub& containers() { return *containers_; }
  runtime::v1::ImageService::Stub& images() { return *images_; }
  containerd::services::images::v1::Images::Stub& containerd_images() {
    return *containerd_images_;
  }
  containerd::services::content::v1::Content::Stub& content() { return *content_; }
  containerd::services::snapshots::v1::Snapshots::Stub& snapshots() { return *snapshots_; }
  containerd::services::leases::v1::Leases::Stub& leases() { return *leases_; }

  /// Passes `call` on with the bytes `request` in place of its own, and waits for the answer.
  Reply Forward(const IncomingCall& call, const grpc::ByteBuffer& request);

 private:
  Upstream(std::string path, const std::shared_ptr<grpc::Channel>& channel);

  const std::string path_;
  grpc::GenericStub any_;
  std::unique_ptr<runtime::v1::RuntimeService::Stub> containers_;
  std::unique_ptr<runtime::v1::ImageService::Stub> images_;
  std::unique_ptr<containerd::services::images::v1::Images::Stub> containerd_images_;
  std::unique_ptr<containerd::services::content::v1::Content::Stub> content_;
  std::unique_ptr<containerd::services::snapshots::v1::Snapshots::Stub> snapshots_;
  std::unique_ptr<containerd::services::leases::v1::Leases::Stub> leases_;
};

/// One blocking call through a typed stub:
///   Call(&Stub::ContainerStatus, runtime.containers(), request, limits)
template <typename Stub, typename Request, typename Response>
Result<Response> Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                      Stub& stub, const Request& request, const CallLimits& limits,
                      const Metadata& metadata = {}) {
  grpc::ClientContext context;
  for (const auto& [key, value] : metadata) context.AddMetadata(key, value);
  if (limits.deadline != std::chrono::system_clock::time_point::max()) {
    context.set_deadline(limits.deadline);
  }
  const std::stop_callback cancel(limits.stop, [&context] { context.TryCancel(); });
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

}  // namespace stasis::cri
