// Calls that Stasis answers itself, on threads that may block.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>

#include "cri/proxy/metadata.h"
#include "cri/proxy/server_call.h"

namespace stasis::cri {

/// A unary call that came in.
struct IncomingCall {
  const grpc::GenericServerContext& context;
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

/// Has `handler` (which outlives the call) answer the call of `client` on a thread of its own: ptrace(2)
/// belongs to a thread, and a restore takes as long as it takes. It counts as one of `handled` and, until
/// the client has its answer, of `all`. `ending`: it is given up, and the client told why.
void StartHandler(std::unique_ptr<ClientEnd> client, const Handler& handler, CallCount& handled,
                  CallCount& all, std::stop_token ending);

}  // namespace stasis::cri
