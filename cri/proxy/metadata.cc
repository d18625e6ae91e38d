#include "cri/proxy/metadata.h"

#include <chrono>

namespace stasis::cri {
namespace {

std::string Text(const grpc::string_ref& ref) { return {ref.data(), ref.size()}; }

// Names that gRPC sets itself on every call that it makes.
bool IsTransport(std::string_view key) { return key == "user-agent" || key == "host"; }

}  // namespace

void ForwardRequest(const grpc::ServerContextBase& from, const std::string& host,
                    grpc::ClientContext& to) {
  for (const auto& [key, value] : from.client_metadata()) {
    if (!IsTransport({key.data(), key.size()})) to.AddMetadata(Text(key), Text(value));
  }
  if (!host.empty()) to.set_authority(host);
  if (from.deadline() != std::chrono::system_clock::time_point::max()) {
    to.set_deadline(from.deadline());
  }
}

}  // namespace stasis::cri
