// The gRPC service of the calls that are answered here.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>

#include "cri/proxy/handler.h"

namespace stasis::cri {

/// Has each call's handler answer it on a thread of its own: ptrace(2) belongs to a thread, and a restore takes as
/// long as it takes.
class HandlerService final : public grpc::CallbackGenericService {
 public:
  /// `handlers` outlive the service.
  explicit HandlerService(const Handlers& handlers) : handlers_(handlers) {}

  /// True when no call is under way; false when `deadline` came first.
  bool WaitUntilNone(std::chrono::steady_clock::time_point deadline);
  /// Has the calls under way give up, and their clients told why.
  void GiveUp() { ending_.request_stop(); }

 private:
  class Call;

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;
  void Count(int change);

  const Handlers& handlers_;
  std::stop_source ending_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int calls_ = 0;  // guarded by mutex_
};

}  // namespace stasis::cri
