// One call of any shape, passed between client and runtime byte for byte.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>

#include <functional>

namespace stasis::cri {

/// Looks at, or changes, a message on its way. Runs on a gRPC thread: it must not block.
using MessageFilter = std::function<void(grpc::ByteBuffer& message)>;

/// What is looked at on the way; an empty filter costs nothing.
struct RelayFilters {
  MessageFilter request;
  MessageFilter response;
};

/// Starts passing the call `context` on through `stub`; the reactor frees itself and all that
/// belongs to the call. Messages, half-close, metadata, deadline, cancellation and status go
/// through in both directions; at most one message each way is in memory, so that a slow reader
/// slows its writer. `filters` (not null) outlives the call.
grpc::ServerGenericBidiReactor* StartRelay(grpc::GenericCallbackServerContext* context,
                                           grpc::GenericStub& stub, const RelayFilters* filters);

}  // namespace stasis::cri
