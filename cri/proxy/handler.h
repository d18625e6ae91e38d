// Calls that Stasis answers itself, on threads that may block.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>

#include "cri/proxy/metadata.h"

namespace stasis::cri {

/// A unary call that came in.
struct IncomingCall {
  const grpc::GenericCallbackServerContext& context;
  const grpc::ByteBuffer& request;
  std::stop_token
      stop;  ///< Requested when the client goes away, its deadline passes, or we shut down.
};

struct Reply {
  grpc::Status status;
  grpc::ByteBuffer message;
  Metadata initial;
  Metadata trailing;
};

/// Answers one call; may block, must not throw.
using Handler = std::function<Reply(const IncomingCall&)>;

/// The calls under way, each on a thread of its own: ptrace(2) belongs to a thread, and a restore
/// takes as long as it takes.
class HandledCalls {
 public:
  ~HandledCalls() { WaitUntilIdle(std::chrono::steady_clock::time_point::max()); }

  /// `handler` outlives the call.
  grpc::ServerGenericBidiReactor* Start(grpc::GenericCallbackServerContext* context,
                                        const Handler* handler);

  /// True when no call is under way; false when `deadline` came first.
  bool WaitUntilIdle(std::chrono::steady_clock::time_point deadline);

 private:
  friend class HandledCall;
  void Began();
  void Ended();

  std::mutex mutex_;
  std::condition_variable changed_;
  int under_way_ = 0;
};

}  // namespace stasis::cri
