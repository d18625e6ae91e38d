#include "cri/restore/shown.h"

#include <optional>
#include <string>
#include <utility>

#include "archive/json_fields.h"
#include "cri/container_facts.h"
#include "cri/restore/placeholder.h"

namespace stasis::cri {
namespace {

using nlohmann::json;
using runtime::v1::Container;
using runtime::v1::ContainerStatus;

void SetImage(const RestoredContainer& record, runtime::v1::ImageSpec& image) {
  const bool named = !record.user_specified_image.empty();
  image.set_image(named ? record.user_specified_image : record.image);
  if (!image.user_specified_image().empty()) {
    image.set_user_specified_image(record.user_specified_image);
  }
}

void DropPlaceholder(json& object, const char* list, const char* key) {
  const auto mounts = object.find(list);
  if (mounts == object.end() || !mounts->is_array()) return;
  for (auto mount = mounts->begin(); mount != mounts->end();) {
    mount = archive::TextField(*mount, key) == kPlaceholderPath ? mounts->erase(mount) : mount + 1;
  }
}

// The runtime's own account of the container, as far as it is ours: its CRI configuration, its OCI
// spec.
void ShowAsAsked(const RestoredContainer& record, json& info) {
  if (const auto config = info.find("config"); config != info.end() && config->is_object()) {
    if (const auto image = config->find("image"); image != config->end() && image->is_object()) {
      (*image)["image"] = record.image;
    }
    (*config)["command"] = record.command;
    (*config)["args"] = record.args;
    DropPlaceholder(*config, "mounts", "container_path");
  }
  if (const auto spec = info.find("runtimeSpec"); spec != info.end() && spec->is_object()) {
    DropPlaceholder(*spec, "mounts", "destination");
  }
}

/// For who makes a checkpoint of a restored container through us (container_facts.cc).
std::string WhatTheRuntimeHas(const RestoredContainer& record, const ContainerStatus& status) {
  return archive::Dump({{"phase", PhaseText(record.phase)},
                        {"image", status.image().image()},
                        {"userSpecifiedImage", status.image().user_specified_image()},
                        {"imageRef", status.image_ref()}});
}

template <typename Message, typename Change>
MessageFilter Filter(const Records& records, Change change) {
  return [&records, change](grpc::ByteBuffer& bytes) {
    if (records.empty()) return;
    Message message;
    // What is not understood goes on as it is: the client may understand it.
    if (!Parse(bytes, message).ok() || !change(records, message)) return;
    if (Result<grpc::ByteBuffer> changed = Serialize(message); changed.ok()) {
      bytes = *changed;  // its copy shares the bytes
    }
  };
}

template <typename Messages>
bool ChangeEach(const Records& records, Messages& messages) {
  bool changed = false;
  for (auto& message : messages) {
    if (const std::optional<RestoredContainer> record = records.Find(message.id())) {
      ShowAsAsked(*record, message);
      changed = true;
    }
  }
  return changed;
}

}  // namespace

void ShowAsAsked(const RestoredContainer& record, ContainerStatus& status) {
  SetImage(record, *status.mutable_image());
  status.set_image_ref(record.image_ref);
  if (!status.image_id().empty()) status.set_image_id(record.image_id);
  auto& mounts = *status.mutable_mounts();
  for (int i = mounts.size() - 1; i >= 0; --i) {
    if (mounts[i].container_path() == kPlaceholderPath) mounts.DeleteSubrange(i, 1);
  }
  if (record.phase == RestorePhase::kFailed &&
      status.state() == runtime::v1::ContainerState::CONTAINER_EXITED) {
    status.set_reason("RestoreFailed");
    status.set_message(record.failure);
  }
}

void ShowAsAsked(const RestoredContainer& record, runtime::v1::ContainerStatusResponse& response) {
  if (!response.info().empty()) {
    (*response.mutable_info())[kStasisInfo] = WhatTheRuntimeHas(record, response.status());
  }
  ShowAsAsked(record, *response.mutable_status());
  const auto info = response.mutable_info()->find("info");
  if (info == response.mutable_info()->end()) return;
  Result<json> parsed = archive::ParseObject(info->second, "verbose status");
  if (!parsed.ok()) return;
  ShowAsAsked(record, *parsed);
  info->second = parsed->dump(-1, ' ', false, json::error_handler_t::replace);
}

void ShowAsAsked(const RestoredContainer& record, Container& container) {
  SetImage(record, *container.mutable_image());
  container.set_image_ref(record.image_ref);
  if (!container.image_id().empty()) container.set_image_id(record.image_id);
}

void AddShownFilters(const Records& records, MethodTable& table) {
  using runtime::v1::ContainerEventResponse;
  using runtime::v1::ContainerStatusResponse;
  using runtime::v1::ListContainersResponse;
  using runtime::v1::PodSandboxStatusResponse;
  const std::string service = "/runtime.v1.RuntimeService/";

  const auto list = [](const Records& all, ListContainersResponse& response) {
    return ChangeEach(all, *response.mutable_containers());
  };
  table.filters[service + "ListContainers"].response =
      Filter<ListContainersResponse>(records, list);
  table.filters[service + "StreamContainers"].response =
      Filter<ListContainersResponse>(records, list);
  table.filters[service + "ContainerStatus"].response = Filter<ContainerStatusResponse>(
      records, [](const Records& all, ContainerStatusResponse& response) {
        const std::optional<RestoredContainer> record = all.Find(response.status().id());
        if (record) ShowAsAsked(*record, response);
        return record.has_value();
      });
  table.filters[service + "PodSandboxStatus"].response = Filter<PodSandboxStatusResponse>(
      records, [](const Records& all, PodSandboxStatusResponse& response) {
        return ChangeEach(all, *response.mutable_containers_statuses());
      });
  table.filters[service + "GetContainerEvents"].response = Filter<ContainerEventResponse>(
      records, [](const Records& all, ContainerEventResponse& response) {
        return ChangeEach(all, *response.mutable_containers_statuses());
      });
}

}  // namespace stasis::cri
