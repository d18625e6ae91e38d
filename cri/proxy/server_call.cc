#include "cri/proxy/server_call.h"

#include <utility>

namespace stasis::cri {

void CallCount::Began() {
  const std::lock_guard lock(mutex_);
  ++calls_;
}

void CallCount::Ended() {
  const std::lock_guard lock(mutex_);
  --calls_;
  changed_.notify_all();  // under the lock: the waiter may destroy this right after
}

bool CallCount::WaitUntilNone(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  const auto none = [this] { return calls_ == 0; };
  if (deadline == std::chrono::steady_clock::time_point::max()) {
    changed_.wait(lock, none);  // wait_until overflows at max() in libstdc++
    return true;
  }
  return changed_.wait_until(lock, deadline, none);
}

ClientEnd::ClientEnd(grpc::AsyncGenericService& service, grpc::ServerCompletionQueue& queue,
                     Event& arrived) {
  context.AsyncNotifyWhenDone(static_cast<Event*>(this));  // too late once the call is there
  service.RequestCall(&context, &stream, &queue, &queue, &arrived);
}

void ClientEnd::Happened(bool /*ok*/) {
  if (context.IsCancelled()) call_->Cancelled();
  call_->Over();
}

ServerCall::ServerCall(std::unique_ptr<ClientEnd> client, CallCount& count)
    : client_(std::move(client)), count_(count) {
  client_->call_ = this;
  count_.Began();
}

void ServerCall::Over() {
  if (--under_way_ == 0) delete this;
}

}  // namespace stasis::cri
