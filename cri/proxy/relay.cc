#include "cri/proxy/relay.h"

#include <utility>

#include "cri/proxy/metadata.h"

namespace stasis::cri {
namespace {

// Order of the end: the runtime's side ends first (a read that gives nothing, then its status), which
// finishes the client's side. A client that goes away cancels the runtime's side and waits for the same.
class Relay : public ServerCall {
 public:
  Relay(std::unique_ptr<ClientEnd> client, const Forwarding& to)
      : ServerCall(std::move(client), to.count), to_(to) {
    ForwardRequest(context(), context().host(), call_);
    runtime_ = to_.stub.PrepareCall(&call_, context().method(), &to_.queue);
    runtime_->StartCall(started_.Begin());
  }

 private:
  void Started(bool ok) {
    if (!ok) {
      EndRuntime();
      return;
    }
    runtime_->ReadInitialMetadata(runtime_answers_.Begin());
    client().Read(&request_, client_sent_.Begin());
  }

  void ClientSent(bool ok) {
    if (ok && to_.filters.request) to_.filters.request(request_);
    if (runtime_ended_) return;
    if (ok) {
      runtime_->Write(request_, runtime_took_.Begin());
    } else {
      runtime_->WritesDone(half_closed_.Begin());
    }
  }

  void RuntimeTook(bool ok) {
    if (ok && !runtime_ended_) client().Read(&request_, client_sent_.Begin());
  }

  void HalfClosed(bool /*ok*/) {}

  void RuntimeAnswers(bool ok) {
    if (!ok) {  // there are no messages: all metadata comes with the status
      EndRuntime();
      return;
    }
    ForwardInitialMetadata(call_, context());
    client().SendInitialMetadata(client_told_.Begin());
  }

  // A write to the client at the same time as its initial metadata is not safe in gRPC 1.51.
  void ClientTold(bool ok) { ClientTook(ok); }

  void ClientTook(bool ok) {
    if (!ok) call_.TryCancel();  // nobody is there to read the rest
    runtime_->Read(&response_, runtime_sent_.Begin());
  }

  void RuntimeSent(bool ok) {
    if (!ok) {
      EndRuntime();
      return;
    }
    if (to_.filters.response) to_.filters.response(response_);
    client().Write(response_, client_took_.Begin());
  }

  void EndRuntime() {
    runtime_ended_ = true;
    runtime_->Finish(&status_, runtime_finished_.Begin());
  }

  void RuntimeFinished(bool /*ok*/) {
    ForwardTrailingMetadata(call_, status_, context());
    client().Finish(status_, client_finished_.Begin());
  }

  void ClientFinished(bool /*ok*/) {}

  void Cancelled() override { call_.TryCancel(); }

  const Forwarding to_;
  grpc::ClientContext call_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> runtime_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
  grpc::Status status_;
  bool runtime_ended_ = false;  // no write to the runtime may begin any more
  Step<Relay, &Relay::Started> started_{this};
  Step<Relay, &Relay::ClientSent> client_sent_{this};
  Step<Relay, &Relay::RuntimeTook> runtime_took_{this};
  Step<Relay, &Relay::HalfClosed> half_closed_{this};
  Step<Relay, &Relay::RuntimeAnswers> runtime_answers_{this};
  Step<Relay, &Relay::ClientTold> client_told_{this};
  Step<Relay, &Relay::RuntimeSent> runtime_sent_{this};
  Step<Relay, &Relay::ClientTook> client_took_{this};
  Step<Relay, &Relay::RuntimeFinished> runtime_finished_{this};
  Step<Relay, &Relay::ClientFinished> client_finished_{this};
};

}  // namespace

void StartRelay(std::unique_ptr<ClientEnd> client, const Forwarding& to) {
  new Relay(std::move(client), to);  // deletes itself
}

}  // namespace stasis::cri
