#include "cri/agent.h"

#include <tuple>

#include "cri/checkpoint/own_mounts.h"
#include "cri/checkpoint/pinned_process.h"

namespace stasis::cri {
namespace {

// The one that runs comes last, and of others the latest.
bool ComesBefore(const runtime::v1::Container& a, const runtime::v1::Container& b) {
  const auto rank = [](const runtime::v1::Container& one) {
    return std::tuple(one.state() == runtime::v1::CONTAINER_RUNNING, one.metadata().attempt());
  };
  return rank(a) < rank(b);
}

}  // namespace

Result<std::string> Agent::Find(const PodContainer& names, const CallLimits& limits) {
  runtime::v1::ListContainersRequest request;
  auto& selector = *request.mutable_filter()->mutable_label_selector();
  selector[kNamespaceLabel] = names.pod_namespace;
  selector[kPodLabel] = names.pod;
  ASSIGN_OR_RETURN(const runtime::v1::ListContainersResponse response,
                   Call(&runtime::v1::RuntimeService::Stub::ListContainers, upstream_.containers(),
                        request, limits));
  const runtime::v1::Container* best = nullptr;
  for (const runtime::v1::Container& container : response.containers()) {
    // Asked again: a runtime that does not know label_selector answers with all of them.
    if (NamesOf(container.labels()) != names) continue;
    if (best == nullptr || ComesBefore(*best, container)) best = &container;
  }
  if (best != nullptr) return best->id();
  const std::string pod = "pod " + names.pod_namespace + "/" + names.pod;
  return NotFound(response.containers().empty()
                      ? pod + " has no containers on this node"
                      : "container " + names.container + " of " + pod + " does not exist");
}

Result<engine::DumpCheck> Agent::Check(const std::string& id, const CallLimits& limits) {
  ASSIGN_OR_RETURN(const ContainerFacts facts, DescribeRunning(upstream_, id, limits));
  ASSIGN_OR_RETURN(const PinnedProcess pinned, PinnedProcess::Of(facts));
  ASSIGN_OR_RETURN(engine::DumpCheck found, engine::CheckDump(facts.pid, checkpointer_.options(),
                                                              CompareWithSpecification(facts)));
  RETURN_IF_ERROR(pinned.StillThere());  // else it may be about another's process
  return found;
}

Status Agent::Ready(const CallLimits& limits) {
  return Annotate(Call(&runtime::v1::RuntimeService::Stub::Version, upstream_.containers(),
                       runtime::v1::VersionRequest(), limits)
                      .status(),
                  "the container runtime");
}

}  // namespace stasis::cri
