#include "cri/proxy/relay.h"

#include <mutex>

#include "cri/proxy/metadata.h"

namespace stasis::cri {
namespace {

// Both halves of one call. Reactions of the two halves run on different threads at the same time.
//
// Order of the end: the runtime's half ends first (a read that gives nothing, then OnDone with the
// status), which finishes the client's half, whose OnDone frees all. A client that goes away
// cancels the runtime's half and waits for the same.
class Relay {
 public:
  Relay(grpc::GenericCallbackServerContext* context, grpc::GenericStub& stub,
        const RelayFilters* filters)
      : context_(context), filters_(filters), client_(this), runtime_(this) {
    ForwardRequest(*context, context->host(), call_);
    stub.PrepareBidiStreamingCall(&call_, context->method(), {}, &runtime_);
    // Writes come from the client's reactions, that is from outside of the runtime half's own: gRPC
    // wants a hold for as long as they may come.
    runtime_.AddHold();
    runtime_.StartCall();
    client_.StartRead(&request_);
  }

  grpc::ServerGenericBidiReactor* client() { return &client_; }

 private:
  class ClientHalf : public grpc::ServerGenericBidiReactor {
   public:
    explicit ClientHalf(Relay* relay) : relay_(relay) {}
    void OnReadDone(bool ok) override { relay_->ClientSent(ok); }
    void OnWriteDone(bool ok) override { relay_->ClientTook(ok); }
    void OnCancel() override { relay_->call_.TryCancel(); }
    void OnDone() override { delete relay_; }

   private:
    Relay* relay_;
  };

  class RuntimeHalf : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
   public:
    explicit RuntimeHalf(Relay* relay) : relay_(relay) {}
    void OnReadInitialMetadataDone(bool ok) override { relay_->RuntimeAnswers(ok); }
    void OnReadDone(bool ok) override { relay_->RuntimeSent(ok); }
    void OnWriteDone(bool ok) override {
      if (ok) relay_->client_.StartRead(&relay_->request_);
    }
    void OnDone(const grpc::Status& status) override { relay_->RuntimeEnded(status); }

   private:
    Relay* relay_;
  };

  void ClientSent(bool ok) {
    if (ok && filters_->request) filters_->request(request_);
    const std::lock_guard lock(mutex_);
    if (runtime_closed_) return;
    if (ok) {
      runtime_.StartWrite(&request_);
    } else {
      runtime_.StartWritesDone();
    }
  }

  void ClientTook(bool ok) {
    if (!ok) call_.TryCancel();  // nobody is there to read the rest
    runtime_.StartRead(&response_);
  }

  void RuntimeAnswers(bool ok) {
    if (ok) {  // else there are no messages: all metadata comes with the status
      ForwardInitialMetadata(call_, *context_);
      client_.StartSendInitialMetadata();
    }
    // Only now: a write to the client at the same time as its initial metadata is not safe in
    // gRPC 1.51.
    runtime_.StartRead(&response_);
  }

  void RuntimeSent(bool ok) {
    if (ok) {
      if (filters_->response) filters_->response(response_);
      client_.StartWrite(&response_);
      return;
    }
    const std::lock_guard lock(mutex_);
    runtime_closed_ = true;
    runtime_.RemoveHold();
  }

  void RuntimeEnded(const grpc::Status& status) {
    ForwardTrailingMetadata(call_, status, *context_);
    client_.Finish(status);  // may free this
  }

  grpc::GenericCallbackServerContext* context_;
  const RelayFilters* filters_;
  grpc::ClientContext call_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
  std::mutex mutex_;
  bool runtime_closed_ = false;  // guarded by mutex_: no write to the runtime may begin any more
  ClientHalf client_;
  RuntimeHalf runtime_;
};

}  // namespace

grpc::ServerGenericBidiReactor* StartRelay(grpc::GenericCallbackServerContext* context,
                                           grpc::GenericStub& stub, const RelayFilters* filters) {
  return (new Relay(context, stub, filters))->client();
}

}  // namespace stasis::cri
