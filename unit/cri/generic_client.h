// A client of any method, for tests: unary calls and streams step by step.
#pragma once

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <future>
#include <memory>
#include <string>
#include <utility>

#include "unit/cri/echo_runtime.h"

namespace stasis::testing {

inline std::shared_ptr<grpc::Channel> ChannelTo(const std::string& socket) {
  grpc::ChannelArguments settings;
  settings.SetMaxReceiveMessageSize(-1);
  settings.SetInt(GRPC_ARG_MAX_METADATA_SIZE, 16 << 20);
  settings.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  settings.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  settings.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  settings.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  return grpc::CreateCustomChannel("unix:" + socket, grpc::InsecureChannelCredentials(), settings);
}

struct Answer {
  grpc::Status status;
  std::string text;
};

inline Answer Unary(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context,
                    const std::string& method, const std::string& text) {
  grpc::GenericStub stub(channel);
  const grpc::ByteBuffer request = BytesOf(text);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, method, {}, &request, &response,
                 [&done](const grpc::Status& status) { done.set_value(status); });
  const grpc::Status status = done.get_future().get();
  return {status, TextOf(response)};
}

/// One stream; each step waits for its end.
class Stream {
 public:
  Stream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) {
    call_ = grpc::GenericStub(channel).PrepareCall(&context, method, &queue_);
    call_->StartCall(this);
    (void)Next();
  }

  ~Stream() {
    context.TryCancel();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  bool Write(const std::string& text) {
    call_->Write(BytesOf(text), this);
    return Next();
  }

  bool HalfClose() {
    call_->WritesDone(this);
    return Next();
  }

  /// The next message; nothing at the end of the stream.
  std::optional<std::string> Read() {
    grpc::ByteBuffer message;
    call_->Read(&message, this);
    return Next() ? std::optional(TextOf(message)) : std::nullopt;
  }

  grpc::Status Finish() {
    grpc::Status status;
    call_->Finish(&status, this);
    (void)Next();
    return status;
  }

  grpc::ClientContext context;

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

}  // namespace stasis::testing
