#include "cri/proxy/handler.h"

#include <system_error>
#include <thread>
#include <utility>

namespace stasis::cri {
namespace {

class HandledCall : public ServerCall {
 public:
  HandledCall(std::unique_ptr<ClientEnd> client, const Handler& handler, CallCount& handled,
              CallCount& all)
      : ServerCall(std::move(client), all), handler_(handler), handled_(handled) {
    handled_.Began();
    this->client().Read(&request_, asked_.Begin());
  }
  ~HandledCall() override { handled_.Ended(); }

 private:
  void Asked(bool ok) {
    void* const finished = finished_.Begin();  // here: steps are counted on the server's thread
    if (!ok) {
      client().Finish(
          grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the call has no request message"),
          finished);
      return;
    }
    try {
      std::thread([this, finished] { Answer(finished); }).detach();  // the counts wait for its end
    } catch (const std::system_error& error) {                       // pthread_create(3): EAGAIN
      client().Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                                   std::string("no thread for the call: ") + error.what()),
                      finished);
    }
  }

  void Answer(void* finished) {
    reply_ = handler_({context(), request_, stop_.get_token()});
    for (const auto& [key, value] : reply_.initial) context().AddInitialMetadata(key, value);
    for (const auto& [key, value] : reply_.trailing) context().AddTrailingMetadata(key, value);
    if (reply_.status.ok()) {
      client().WriteAndFinish(reply_.message, {}, reply_.status, finished);
    } else {
      client().Finish(reply_.status, finished);
    }
  }

  void Finished(bool /*ok*/) {}

  void Cancelled() override { stop_.request_stop(); }

  const Handler& handler_;
  CallCount& handled_;
  grpc::ByteBuffer request_;
  std::stop_source stop_;
  Reply reply_;
  Step<HandledCall, &HandledCall::Asked> asked_{this};
  Step<HandledCall, &HandledCall::Finished> finished_{this};
};

}  // namespace

void StartHandler(std::unique_ptr<ClientEnd> client, const Handler& handler, CallCount& handled,
                  CallCount& all) {
  new HandledCall(std::move(client), handler, handled, all);  // deletes itself
}

}  // namespace stasis::cri
