// A gRPC server that stands for the runtime in tests of the proxy: every method exists, its last
// word says what happens.
//
//   .../Echo   sends every message back, client metadata as initial ("got-KEY") and trailing
//   metadata
//   .../Count  answers one message with as many as its text says ("0", "1", ...)
//   .../Join   answers all messages with one, when the client half-closes
//   .../Fail   NotFound with a message, details and trailing metadata, no answer
//   .../Hang   never answers; counts cancellations
#pragma once

#include <grpc/grpc.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace stasis::testing {

inline std::string TextOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (!buffer.Dump(&slices).ok()) return text;
  for (const grpc::Slice& slice : slices) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

inline grpc::ByteBuffer BytesOf(const std::string& text) {
  const grpc::Slice slice(text);
  return {&slice, 1};
}

class EchoRuntime {
 public:
  explicit EchoRuntime(std::string socket) : socket_(std::move(socket)) { Start(); }
  ~EchoRuntime() { Stop(); }

  void Start() {
    // For all tests: whoever ends gRPC waits up to ten seconds for its poller, once a socket was full.
    [[maybe_unused]] static const bool kKept = (grpc_init(), true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket_, grpc::InsecureServerCredentials());
    builder.SetMaxReceiveMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 20);
    service_ = std::make_unique<Service>(this);
    builder.RegisterCallbackGenericService(service_.get());
    server_ = builder.BuildAndStart();
  }

  void Stop() {
    if (!server_) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }

  std::atomic<int> hanging = 0;
  std::atomic<int> cancelled = 0;
  std::atomic<int> calls = 0;
  std::atomic<int> counted = 0;        ///< Messages that Count has sent, of all calls.
  std::atomic<long> seconds_left = 0;  ///< Of the last call's deadline.

 private:
  class Reactor : public grpc::ServerGenericBidiReactor {
   public:
    Reactor(EchoRuntime* runtime, grpc::GenericCallbackServerContext* context)
        : runtime_(runtime),
          context_(context),
          method_(context->method().substr(context->method().rfind('/') + 1)) {
      ++runtime_->calls;
      runtime_->seconds_left = std::chrono::duration_cast<std::chrono::seconds>(
                                   context->deadline() - std::chrono::system_clock::now())
                                   .count();
      if (method_ == "Fail") {
        Fail();
        return;
      }
      if (method_ == "Hang") ++runtime_->hanging;
      if (method_ == "Echo") Reflect();
      StartRead(&message_);
    }

    void OnReadDone(bool ok) override {
      if (method_ == "Hang") return;
      if (method_ == "Join") return Join(ok);
      if (!ok) return Finish(grpc::Status::OK);
      if (method_ == "Count") {
        left_ = std::stoi(TextOf(message_));
        return CountOn();
      }
      StartWrite(&message_);
    }

    void OnWriteDone(bool ok) override {
      if (!ok) return Finish(grpc::Status::CANCELLED);
      if (method_ == "Count") return CountOn();
      if (method_ == "Join") return Finish(grpc::Status::OK);
      StartRead(&message_);
    }

    void OnCancel() override {
      ++runtime_->cancelled;
      if (method_ == "Hang") Finish(grpc::Status::CANCELLED);
    }

    void OnDone() override { delete this; }

   private:
    void Reflect() {
      for (const auto& [key, value] : context_->client_metadata()) {
        const std::string name(key.data(), key.size());
        if (name.rfind("x-", 0) != 0) continue;
        const std::string text(value.data(), value.size());
        context_->AddInitialMetadata("got-" + name, text);
        context_->AddTrailingMetadata("end-" + name, text);
      }
      context_->AddInitialMetadata("got-authority", context_->host());
      StartSendInitialMetadata();
    }

    void Fail() {
      context_->AddTrailingMetadata("why-bin", std::string("\0\xff\n", 3));
      Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "no \"such\" thing: \xc3\xa4 100%",
                          std::string("\x08\x05\0x", 4)));
    }

    void CountOn() {
      if (left_ == sent_) return Finish(grpc::Status::OK);
      message_ = BytesOf(std::to_string(sent_++));
      ++runtime_->counted;
      StartWrite(&message_);
    }

    void Join(bool ok) {
      if (ok) {
        joined_ += TextOf(message_);
        return StartRead(&message_);
      }
      message_ = BytesOf(joined_);
      StartWrite(&message_);
    }

    EchoRuntime* runtime_;
    grpc::GenericCallbackServerContext* context_;
    const std::string method_;
    grpc::ByteBuffer message_;
    int left_ = 0;
    int sent_ = 0;
    std::string joined_;
  };

  class Service : public grpc::CallbackGenericService {
   public:
    explicit Service(EchoRuntime* runtime) : runtime_(runtime) {}
    grpc::ServerGenericBidiReactor* CreateReactor(
        grpc::GenericCallbackServerContext* context) override {
      return new Reactor(runtime_, context);
    }

   private:
    EchoRuntime* runtime_;
  };

  const std::string socket_;
  std::unique_ptr<Service> service_;  // gRPC wants a new one for each server
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace stasis::testing
