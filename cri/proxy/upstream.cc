#include "cri/proxy/upstream.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include "cri/proxy/limits.h"
#include "cri/proxy/listener.h"

namespace stasis::cri {
namespace {

// A runtime that restarts is met again within a second; gRPC's own default waits up to two minutes.
constexpr int kFirstReconnectMs = 100;
constexpr int kMaxReconnectMs = 1000;
// GRPC_ARG_MIN_RECONNECT_BACKOFF_MS is, above all, the time that an attempt has until the server's SETTINGS frame is
// there (gRPC doc/connection-backoff.md, MIN_CONNECT_TIMEOUT): on a busy node that comes late.
constexpr int kConnectMs = 20'000;

grpc::ChannelArguments ChannelSettings() {
  grpc::ChannelArguments settings;
  settings.SetMaxReceiveMessageSize(kUnlimitedMessage);
  settings.SetMaxSendMessageSize(kUnlimitedMessage);
  settings.SetInt(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  settings.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kFirstReconnectMs);
  settings.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectMs);
  settings.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  settings.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);  // the client decides what is tried again
  settings.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  settings.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return settings;
}

Metadata Copy(const std::multimap<grpc::string_ref, grpc::string_ref>& from) {
  Metadata copy;
  for (const auto& [key, value] : from) {
    copy.emplace_back(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
  }
  return copy;
}

}  // namespace

Status FromGrpc(const grpc::Status& status) {
  return MakeStatus(static_cast<StatusCode>(status.error_code()), status.error_message());
}

grpc::Status ToGrpc(const Status& status) {
  std::string message(Message(status));
  if (message.size() > kMaxStatusBytes) message.replace(kMaxStatusBytes, std::string::npos, " …");
  return {static_cast<grpc::StatusCode>(status.code()), message};
}

Result<grpc::ByteBuffer> Serialize(const google::protobuf::Message& message) {
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  const grpc::Status status =
      grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::Message>(message, &bytes,
                                                                                 &own_buffer);
  if (!status.ok()) return FromGrpc(status);
  return bytes;
}

Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  grpc::ByteBuffer copy(bytes);  // shares the slices; reading consumes the buffer
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !message.ParseFromZeroCopyStream(&reader)) {
    return InvalidArgument("the message is not a valid " + message.GetTypeName());
  }
  return OkStatus();
}

Result<std::unique_ptr<Upstream>> Upstream::Open(const std::string& endpoint) {
  ASSIGN_OR_RETURN(const std::string path, UnixSocketPath(endpoint));
  const auto channel = grpc::CreateCustomChannel(
      "unix://" + path, grpc::InsecureChannelCredentials(), ChannelSettings());
  return std::unique_ptr<Upstream>(new Upstream(path, channel));
}

Upstream::Upstream(std::string path, const std::shared_ptr<grpc::Channel>& channel)
    : path_(std::move(path)),
      any_(channel),
      containers_(runtime::v1::RuntimeService::NewStub(channel)),
      images_(runtime::v1::ImageService::NewStub(channel)),
      containerd_images_(containerd::services::images::v1::Images::NewStub(channel)),
      content_(containerd::services::content::v1::Content::NewStub(channel)),
      snapshots_(containerd::services::snapshots::v1::Snapshots::NewStub(channel)),
      leases_(containerd::services::leases::v1::Leases::NewStub(channel)) {}

Reply Upstream::Forward(const IncomingCall& call, const grpc::ByteBuffer& request) {
  grpc::ClientContext context;
  ForwardRequest(call.context, call.context.host(), context);
  Reply reply;
  grpc::CompletionQueue queue;
  const auto runtime = any_.PrepareUnaryCall(&context, call.context.method(), request, &queue);
  runtime->StartCall();
  runtime->Finish(&reply.message, &reply.status, nullptr);
  const std::stop_callback cancel(call.stop, [&context] { context.TryCancel(); });
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();  // a queue that goes away has to be shut down and empty
  while (queue.Next(&tag, &ok)) {
  }
  reply.initial = Copy(context.GetServerInitialMetadata());
  reply.trailing = Copy(context.GetServerTrailingMetadata());
  if (!reply.status.error_details().empty()) {
    std::erase_if(reply.trailing,
                  [](const auto& entry) { return entry.first == kStatusDetailsKey; });
  }
  return reply;
}

}  // namespace stasis::cri
