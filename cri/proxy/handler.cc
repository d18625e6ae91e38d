#include "cri/proxy/handler.h"

#include <thread>
#include <utility>

namespace stasis::cri {

class HandledCall : public grpc::ServerGenericBidiReactor {
 public:
  HandledCall(grpc::GenericCallbackServerContext* context, const Handler* handler,
              HandledCalls* calls)
      : context_(context), handler_(handler), calls_(calls) {
    calls_->Began();
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the call has no request message"));
      return;
    }
    std::thread([this] { Answer(); }).detach();  // HandledCalls waits for its end
  }

  void OnCancel() override { stop_.request_stop(); }

  void OnDone() override {
    HandledCalls* calls = calls_;
    delete this;
    calls->Ended();
  }

 private:
  void Answer() {
    reply_ = (*handler_)({*context_, request_, stop_.get_token()});
    for (const auto& [key, value] : reply_.initial) context_->AddInitialMetadata(key, value);
    for (const auto& [key, value] : reply_.trailing) context_->AddTrailingMetadata(key, value);
    if (reply_.status.ok()) {
      StartWriteAndFinish(&reply_.message, {}, reply_.status);
    } else {
      Finish(reply_.status);
    }
  }

  grpc::GenericCallbackServerContext* context_;
  const Handler* handler_;
  HandledCalls* calls_;
  grpc::ByteBuffer request_;
  std::stop_source stop_;
  Reply reply_;
};

grpc::ServerGenericBidiReactor* HandledCalls::Start(grpc::GenericCallbackServerContext* context,
                                                    const Handler* handler) {
  return new HandledCall(context, handler, this);
}

void HandledCalls::Began() {
  const std::lock_guard lock(mutex_);
  ++under_way_;
}

void HandledCalls::Ended() {
  const std::lock_guard lock(mutex_);
  --under_way_;
  changed_.notify_all();  // under the lock: the waiter may destroy this right after
}

bool HandledCalls::WaitUntilIdle(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  const auto idle = [this] { return under_way_ == 0; };
  if (deadline == std::chrono::steady_clock::time_point::max()) {
    changed_.wait(lock, idle);  // wait_until overflows at max() in libstdc++
    return true;
  }
  return changed_.wait_until(lock, deadline, idle);
}

}  // namespace stasis::cri
