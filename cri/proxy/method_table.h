// What is not simply passed on between a client and the runtime.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <functional>
#include <map>
#include <string>

#include "cri/proxy/handler.h"

namespace stasis::cri {

/// Looks at, or changes, a message on its way. All other calls wait for it: it must not block.
using MessageFilter = std::function<void(grpc::ByteBuffer& message)>;

/// What is looked at on the way; an empty filter costs nothing.
struct MessageFilters {
  MessageFilter request;
  MessageFilter response;
};

/// By method ("/runtime.v1.RuntimeService/CreateContainer"). Methods that are not here, known to us or
/// not, pass byte for byte.
struct MethodTable {
  Handlers handlers;                                           ///< Answered by us; may block.
  std::map<std::string, MessageFilters, std::less<>> filters;  ///< Passed on, looked at on the way.
};

}  // namespace stasis::cri
