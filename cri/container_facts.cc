#include "cri/container_facts.h"

#include <utility>

#include "archive/json_fields.h"

namespace stasis::cri {
namespace {

/// What stasisd shows in place of a restored container's own image is undone: an archive names the
/// base image, of which the next restore makes the container.
Status TakeStasisInfo(const runtime::v1::ContainerStatusResponse& response, ContainerFacts& facts) {
  const auto info = response.info().find(kStasisInfo);
  if (info == response.info().end()) return OkStatus();
  ASSIGN_OR_RETURN(const nlohmann::json json,
                   archive::ParseObject(info->second, "what stasisd says of the container"));
  facts.restore_phase = archive::TextField(json, "phase");
  runtime::v1::ImageSpec& image = *facts.status.mutable_image();
  image.set_image(archive::TextField(json, "image"));
  image.set_user_specified_image(archive::TextField(json, "userSpecifiedImage"));
  facts.status.set_image_ref(archive::TextField(json, "imageRef"));
  return OkStatus();
}

}  // namespace

PodContainer NamesOf(const google::protobuf::Map<std::string, std::string>& labels) {
  const auto label = [&](const char* key) {
    const auto found = labels.find(key);
    return found == labels.end() ? std::string() : found->second;
  };
  return {.pod_namespace = label(kNamespaceLabel),
          .pod = label(kPodLabel),
          .container = label(kContainerLabel)};
}

Result<ContainerFacts> DescribeContainer(Upstream& upstream, const std::string& id,
                                         const CallLimits& limits) {
  runtime::v1::ContainerStatusRequest request;
  request.set_container_id(id);
  request.set_verbose(true);
  ASSIGN_OR_RETURN(runtime::v1::ContainerStatusResponse response,
                   Call(&runtime::v1::RuntimeService::Stub::ContainerStatus, upstream.containers(),
                        request, limits));
  // Both containerd and CRI-O put one JSON text under "info"; CRI itself leaves the map's content
  // open.
  const auto info = response.info().find("info");
  if (info == response.info().end()) {
    return FailedPrecondition("the runtime tells neither pid nor spec of container " + id +
                              "; containerd and CRI-O do");
  }
  ASSIGN_OR_RETURN(const nlohmann::json json,
                   archive::ParseObject(info->second, "the verbose status of container " + id));
  ContainerFacts facts;
  facts.status = std::move(*response.mutable_status());
  facts.pid = archive::NumberField<pid_t>(json, "pid");
  facts.spec = archive::Field(json, "runtimeSpec");
  facts.sandbox_id = archive::TextField(json, "sandboxID");
  facts.runtime_type = archive::TextField(json, "runtimeType");
  RETURN_IF_ERROR(TakeStasisInfo(response, facts));
  return facts;
}

std::vector<std::string> MountDestinations(const nlohmann::json& spec) {
  std::vector<std::string> destinations;
  for (const nlohmann::json& mount : archive::ArrayField(spec, "mounts")) {
    destinations.push_back(archive::TextField(mount, "destination"));
  }
  return destinations;
}

std::vector<std::string> BindDestinations(const nlohmann::json& spec) {
  std::vector<std::string> destinations;
  for (const nlohmann::json& mount : archive::ArrayField(spec, "mounts")) {
    bool binds = archive::TextField(mount, "type") == "bind";
    for (const nlohmann::json& option : archive::ArrayField(mount, "options")) {
      binds = binds || option == "bind" || option == "rbind";
    }
    if (binds) destinations.push_back(archive::TextField(mount, "destination"));
  }
  return destinations;
}

bool HasCapability(const nlohmann::json& spec, const char* name) {
  const nlohmann::json& sets = archive::Field(archive::Field(spec, "process"), "capabilities");
  const nlohmann::json& bounding = archive::ArrayField(sets, "bounding");
  return std::find(bounding.begin(), bounding.end(), name) != bounding.end();
}

}  // namespace stasis::cri
