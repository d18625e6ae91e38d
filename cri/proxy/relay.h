// One call of any shape, passed between client and runtime byte for byte.
#pragma once

#include <grpcpp/generic/generic_stub.h>

#include <functional>
#include <memory>

#include "cri/proxy/server_call.h"

namespace stasis::cri {

/// Looks at, or changes, a message on its way. All other calls wait for it: it must not block.
using MessageFilter = std::function<void(grpc::ByteBuffer& message)>;

/// What is looked at on the way; an empty filter costs nothing.
struct RelayFilters {
  MessageFilter request;
  MessageFilter response;
};

/// Where a call goes; all of it outlives the call.
struct Forwarding {
  grpc::GenericStub& stub;
  grpc::ServerCompletionQueue& queue;
  const RelayFilters& filters;
  CallCount& count;
};

/// Starts passing the call of `client` on. Messages, half-close, metadata, deadline, cancellation and
/// status go through in both directions; at most one message each way is in memory, so that a slow reader
/// slows its writer.
void StartRelay(std::unique_ptr<ClientEnd> client, const Forwarding& to);

}  // namespace stasis::cri
