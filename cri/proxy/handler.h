// Calls that Stasis answers itself, on threads that may block.
#pragma once

#include <grpcpp/generic/async_generic_service.h>

#include <functional>
#include <map>
#include <stop_token>
#include <string>

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
/// By method ("/runtime.v1.RuntimeService/CreateContainer").
using Handlers = std::map<std::string, Handler, std::less<>>;

}  // namespace stasis::cri
