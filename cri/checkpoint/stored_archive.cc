#include "cri/checkpoint/stored_archive.h"

#include <string>

#include "archive/members.h"

namespace stasis::cri {

Result<PodContainer> ContainerOf(const archive::Archive& archive, std::string_view name) {
  ASSIGN_OR_RETURN(const std::string json, archive.Get(archive::kSpecDumpName));
  ASSIGN_OR_RETURN(const archive::SpecSummary spec, archive::SummarizeSpec(json));
  const std::string of_kubelet =
      "checkpoint-" + spec.pod + "_" + spec.pod_namespace + "-" + spec.container + "-";
  if (!name.starts_with(of_kubelet)) {
    return InvalidArgument(std::string(name) + " is not named by the container that is in it");
  }
  return PodContainer{
      .pod_namespace = spec.pod_namespace, .pod = spec.pod, .container = spec.container};
}

}  // namespace stasis::cri
