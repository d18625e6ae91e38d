#include "cri/proxy/handler.h"

#include <functional>
#include <system_error>
#include <thread>
#include <utility>

namespace stasis::cri {
namespace {

constexpr char kEnding[] =
    ": stasisd on this node ends, as for an upgrade; ask again when it is back";

class HandledCall : public ServerCall {
 public:
  HandledCall(std::unique_ptr<ClientEnd> client, const Handler& handler, CallCount& handled,
              CallCount& all, std::stop_token ending)
      : ServerCall(std::move(client), all),
        handler_(handler),
        handled_(handled),
        ending_(std::move(ending)),
        given_up_(ending_, [this] { stop_.request_stop(); }) {
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
    if (ending_.stop_requested() && reply_.status.error_code() == grpc::StatusCode::CANCELLED) {
      reply_.status =
          grpc::Status(grpc::StatusCode::UNAVAILABLE, reply_.status.error_message() + kEnding);
    }
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
  const std::stop_token ending_;
  const std::stop_callback<std::function<void()>> given_up_;
  Reply reply_;
  Step<HandledCall, &HandledCall::Asked> asked_{this};
  Step<HandledCall, &HandledCall::Finished> finished_{this};
};

}  // namespace

void StartHandler(std::unique_ptr<ClientEnd> client, const Handler& handler, CallCount& handled,
                  CallCount& all, std::stop_token ending) {
  new HandledCall(std::move(client), handler, handled, all, std::move(ending));  // deletes itself
}

}  // namespace stasis::cri
