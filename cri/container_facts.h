// What the runtime knows of a container, as far as it concerns us.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cri/proxy/upstream.h"
#include "engine/base/status.h"

namespace stasis::cri {

// What the kubelet calls its containers by, and finds them again by.
inline constexpr const char* kNamespaceLabel = "io.kubernetes.pod.namespace";
inline constexpr const char* kPodLabel = "io.kubernetes.pod.name";
inline constexpr const char* kPodUidLabel = "io.kubernetes.pod.uid";
inline constexpr const char* kContainerLabel = "io.kubernetes.container.name";

/// A container by the names that Kubernetes gives it. One that no kubelet made lacks some.
struct PodContainer {
  std::string pod_namespace;
  std::string pod;
  std::string container;

  bool operator==(const PodContainer&) const = default;
};
PodContainer NamesOf(const google::protobuf::Map<std::string, std::string>& labels);

struct ContainerFacts {
  runtime::v1::ContainerStatus status;
  pid_t pid = 0;        ///< Of its first process, as the host sees it; 0 when it does not run.
  nlohmann::json spec;  ///< The OCI runtime spec.
  std::string sandbox_id;
  std::string runtime_type;  ///< "io.containerd.runc.v2"; empty where the runtime does not say.
  /// Where stasisd was asked, and restored the container: how far it is (records.h). Else empty.
  std::string restore_phase;
};

/// The entry of a verbose status in which stasisd tells what it shows otherwise: the image that the
/// runtime runs a restored container with.
inline constexpr const char* kStasisInfo = "stasis";

/// NotFound: no such container. FailedPrecondition: the runtime does not tell what we must know.
Result<ContainerFacts> DescribeContainer(Upstream& upstream, const std::string& id,
                                         const CallLimits& limits);

/// Where something else than the root file system is mounted in a container of `spec`.
std::vector<std::string> MountDestinations(const nlohmann::json& spec);

/// Those of them that come from outside the container: bind mounts.
std::vector<std::string> BindDestinations(const nlohmann::json& spec);

/// Whether processes of a container of `spec` could have it, such as "CAP_MKNOD".
bool HasCapability(const nlohmann::json& spec, const char* name);

}  // namespace stasis::cri
