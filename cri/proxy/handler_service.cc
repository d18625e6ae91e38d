#include "cri/proxy/handler_service.h"

#include <functional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace stasis::cri {
namespace {

constexpr char kEnding[] =
    ": stasisd on this node ends, as for an upgrade; ask again when it is back";

}  // namespace

// gRPC calls its On...() on threads that must not block, and OnDone() the last.
class HandlerService::Call final : public grpc::ServerGenericBidiReactor {
 public:
  Call(HandlerService& service, const cri::Handler& handler,
       grpc::GenericCallbackServerContext& context)
      : service_(service),
        handler_(handler),
        context_(context),
        given_up_(service.ending_.get_token(), [this] { stop_.request_stop(); }) {
    service_.Count(1);
    StartRead(&request_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish({grpc::StatusCode::INVALID_ARGUMENT, "the call has no request message"});
      return;
    }
    try {
      std::thread([this] { Answer(); }).detach();  // the service waits for its end
    } catch (const std::system_error& error) {     // pthread_create(3): EAGAIN
      Finish({grpc::StatusCode::RESOURCE_EXHAUSTED,
              std::string("no thread for the call: ") + error.what()});
    }
  }

  void Answer() {
    reply_ = handler_({context_, request_, stop_.get_token()});
    grpc::Status& status = reply_.status;
    if (service_.ending_.stop_requested() && status.error_code() == grpc::StatusCode::CANCELLED) {
      status = {grpc::StatusCode::UNAVAILABLE, status.error_message() + kEnding};
    }
    for (const auto& [key, value] : reply_.initial) context_.AddInitialMetadata(key, value);
    for (const auto& [key, value] : reply_.trailing) context_.AddTrailingMetadata(key, value);
    if (status.ok()) {
      StartWriteAndFinish(&reply_.message, {}, status);
    } else {
      Finish(status);
    }
  }

  void OnCancel() override { stop_.request_stop(); }

  void OnDone() override {
    HandlerService& service = service_;
    delete this;
    service.Count(-1);
  }

  HandlerService& service_;
  const cri::Handler& handler_;
  grpc::GenericCallbackServerContext& context_;
  grpc::ByteBuffer request_;
  std::stop_source stop_;
  const std::stop_callback<std::function<void()>> given_up_;
  Reply reply_;
};

grpc::ServerGenericBidiReactor* HandlerService::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  const auto handler = handlers_.find(context->method());
  if (handler == handlers_.end()) return CallbackGenericService::CreateReactor(context);
  return new Call(*this, handler->second, *context);  // deletes itself
}

void HandlerService::Count(int change) {
  const std::lock_guard lock(mutex_);
  calls_ += change;
  changed_.notify_all();  // under the lock: the waiter may destroy this right after
}

bool HandlerService::WaitUntilNone(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] { return calls_ == 0; });
}

}  // namespace stasis::cri
