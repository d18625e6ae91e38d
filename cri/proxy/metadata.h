// Metadata that goes through: the client's to the runtime, the runtime's back.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stasis::cri {

/// gRPC makes this trailer from Status::error_details(); sent as metadata too, it would be there
/// twice.
inline constexpr std::string_view kStatusDetailsKey = "grpc-status-details-bin";

using Metadata = std::vector<std::pair<std::string, std::string>>;

/// Metadata, deadline and `:authority` of the call `from` (addressed to `host`) for the call `to`.
void ForwardRequest(const grpc::ServerContextBase& from, const std::string& host,
                    grpc::ClientContext& to);

}  // namespace stasis::cri
