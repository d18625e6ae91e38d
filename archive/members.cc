#include "archive/members.h"

#include <array>
#include <cstdio>
#include <ctime>

#include "archive/json_fields.h"

namespace stasis::archive {
namespace {

using nlohmann::json;

void PutUnlessEmpty(json& object, const char* key, const std::string& value) {
  if (!value.empty()) object[key] = value;
}

std::string FirstOf(const json& annotations, std::initializer_list<const char*> keys) {
  for (const char* const key : keys) {
    if (std::string value = TextField(annotations, key); !value.empty()) return value;
  }
  return "";
}

/// containerd's annotations name no manager.
std::string EngineOf(const json& annotations) {
  const std::string manager = TextField(annotations, "io.container.manager");
  if (manager == "libpod") return "Podman";
  if (manager == "cri-o") return "CRI-O";
  return annotations.contains("io.kubernetes.cri.container-type") ? "containerd" : "";
}

}  // namespace

std::string Rfc3339(std::chrono::system_clock::time_point time) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(time);
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(time - seconds);
  const std::time_t when = std::chrono::system_clock::to_time_t(seconds);
  std::tm parts = {};
  ::gmtime_r(&when, &parts);
  std::array<char, 32> date;
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), "%s.%09lldZ", date.data(),
                static_cast<long long>(nanoseconds.count()));
  return text.data();
}

std::string ConfigDumpToJson(const ConfigDump& config) {
  json object = {
      {"id", config.id},
      {"name", config.name},
      {"createdTime", config.created_time},
      {"checkpointedTime", config.checkpointed_time},
      {"restoredTime", kNoTime},
      {"restored", config.restored},
  };
  PutUnlessEmpty(object, "rootfsImage", config.rootfs_image);
  PutUnlessEmpty(object, "rootfsImageRef", config.rootfs_image_ref);
  PutUnlessEmpty(object, "rootfsImageName", config.rootfs_image_name);
  PutUnlessEmpty(object, "runtime", config.runtime);
  return Dump(object);
}

Result<ConfigDump> ConfigDumpFromJson(std::string_view text) {
  ASSIGN_OR_RETURN(const json object, ParseObject(text, kConfigDumpName));
  ConfigDump config;
  config.id = TextField(object, "id");
  config.name = TextField(object, "name");
  config.rootfs_image = TextField(object, "rootfsImage");
  config.rootfs_image_ref = TextField(object, "rootfsImageRef");
  config.rootfs_image_name = TextField(object, "rootfsImageName");
  config.runtime = TextField(object, "runtime");
  config.created_time = TextField(object, "createdTime");
  config.checkpointed_time = TextField(object, "checkpointedTime");
  config.restored = Field(object, "restored") == true;
  return config;
}

std::string StatusDumpToJson(const StatusDump& status) {
  json metadata = {{"name", status.name}};
  if (status.attempt != 0) metadata["attempt"] = status.attempt;
  json image = {{"image", status.image}};
  PutUnlessEmpty(image, "user_specified_image", status.user_specified_image);
  json object = {
      {"id", status.id},
      {"metadata", metadata},
      {"state", status.state},
      {"created_at", status.created_at},
      {"started_at", status.started_at},
      {"image", image},
  };
  PutUnlessEmpty(object, "image_ref", status.image_ref);
  PutUnlessEmpty(object, "log_path", status.log_path);
  if (!status.labels.empty()) object["labels"] = status.labels;
  if (!status.annotations.empty()) object["annotations"] = status.annotations;
  return Dump(object);
}

std::string ContainerdStatusToJson(const ContainerdStatus& status) {
  return Dump(json{
      {"Version", "v1"},
      {"Pid", status.pid},
      {"CreatedAt", status.created_at},
      {"StartedAt", status.started_at},
      {"FinishedAt", 0},
      {"ExitCode", 0},
      {"Reason", ""},
      {"Message", ""},
      {"Resources", json::object()},
  });
}

std::string BindMountsToJson(const std::vector<BindMount>& mounts) {
  json array = json::array();
  for (const BindMount& mount : mounts) {
    array.push_back({{"source", mount.source},
                     {"destination", mount.destination},
                     {"file_type", mount.is_directory ? "directory" : "file"},
                     {"permissions", mount.permissions & 0777}});
  }
  return Dump(array);
}

std::string PlainSpecToJson(const PlainSpec& spec) {
  json object = {
      {"ociVersion", "1.0.2"},
      {"process", {{"args", spec.args}, {"cwd", spec.cwd}, {"user", {{"uid", 0}, {"gid", 0}}}}},
      {"root", {{"path", "/"}}},
      {"mounts", json::array()},
      {"annotations", json::object()},
      {"linux", {{"namespaces", json::array()}}},
  };
  PutUnlessEmpty(object, "hostname", spec.hostname);
  return Dump(object);
}

Result<SpecSummary> SummarizeSpec(std::string_view spec_json) {
  ASSIGN_OR_RETURN(const json spec, ParseObject(spec_json, kSpecDumpName));
  const json& annotations = Field(spec, "annotations");
  SpecSummary summary;
  summary.engine = EngineOf(annotations);
  summary.pod = FirstOf(annotations, {"io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"});
  summary.pod_namespace =
      FirstOf(annotations, {"io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"});
  summary.pod_uid =
      FirstOf(annotations, {"io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"});
  summary.sandbox_id =
      FirstOf(annotations, {"io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"});
  summary.container =
      FirstOf(annotations, {"io.kubernetes.cri.container-name", "io.kubernetes.container.name"});
  summary.image =
      FirstOf(annotations, {"io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"});
  return summary;
}

}  // namespace stasis::archive
