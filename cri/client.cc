#include "cri/client.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>

#include "cri/checkpoint/container_checkpoint.h"
#include "cri/proxy/listener.h"
#include "cri/proxy/upstream.h"

namespace stasis::cri {
namespace {

constexpr const char* kUsualEndpoints[] = {
    "unix:///run/stasis/stasis.sock",
    "unix:///run/containerd/containerd.sock",
    "unix:///run/crio/crio.sock",
};
constexpr std::chrono::seconds kAnswerTime{30};

bool SomebodyIsAt(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return false;
  std::memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return socket &&
         ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

Status NamingTheSocket(const Status& status, const std::string& endpoint) {
  if (status.code() != StatusCode::kUnavailable) return status;
  return Annotate(status, "nobody answers at " + endpoint +
                              "; is stasisd running, or is --runtime-endpoint another");
}

}  // namespace

Status CheckpointContainer(const CheckpointCall& call) {
  ASSIGN_OR_RETURN(const auto service, Upstream::Open(call.runtime_endpoint));
  runtime::v1::CheckpointContainerRequest request;
  request.set_container_id(call.container_id);
  request.set_location(call.location);
  request.set_timeout(call.timeout.count());
  CallLimits limits{.deadline = std::chrono::system_clock::time_point::max(), .stop = call.stop};
  if (call.timeout.count() > 0) limits.deadline = std::chrono::system_clock::now() + call.timeout;
  return NamingTheSocket(Call(&runtime::v1::RuntimeService::Stub::CheckpointContainer,
                              service->containers(), request, limits)
                             .status(),
                         call.runtime_endpoint);
}

Result<std::string> UsualEndpoint() {
  std::string asked;
  for (std::string endpoint : kUsualEndpoints) {
    ASSIGN_OR_RETURN(const std::string path, UnixSocketPath(endpoint));
    if (SomebodyIsAt(path)) return endpoint;
    asked += (asked.empty() ? "" : ", ") + path;
  }
  return Unavailable("no container runtime answers at " + asked +
                     "; name its socket with --runtime-endpoint");
}

Result<std::string> RuntimeVersionAt(const std::string& endpoint,
                                     std::chrono::microseconds patience,
                                     const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const auto runtime, Upstream::Open(endpoint));
  const CallLimits limits{.deadline = std::chrono::system_clock::now() + patience, .stop = stop};
  const auto answer = Call(&runtime::v1::RuntimeService::Stub::Version, runtime->containers(),
                           runtime::v1::VersionRequest(), limits);
  if (!answer.ok()) return NamingTheSocket(answer.status(), endpoint);
  return answer->runtime_name() + " " + answer->runtime_version();
}

Result<ContainerFacts> DescribeRunningAt(const std::string& endpoint, const std::string& id,
                                         const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const auto runtime, Upstream::Open(endpoint));
  const CallLimits limits{.deadline = std::chrono::system_clock::now() + kAnswerTime, .stop = stop};
  Result<ContainerFacts> facts = DescribeRunning(*runtime, id, limits);
  if (!facts.ok()) return NamingTheSocket(facts.status(), endpoint);
  return facts;
}

}  // namespace stasis::cri
