#include "archive/inspect.h"

namespace stasis::archive {
namespace {

using nlohmann::json;

json FilesToJson(const InspectedProcess& process, bool sockets) {
  json files = json::array();
  for (const DescribedFile& file : process.files) {
    if (file.is_socket != sockets) continue;
    files.push_back({{"fd", file.fd}, {"kind", file.kind}, {"description", file.description}});
  }
  return files;
}

json ProcessToJson(const InspectedProcess& process) {
  return {{"pid", process.pid},
          {"parent", process.parent},
          {"group", process.group},
          {"session", process.session},
          {"threads", process.threads},
          {"name", process.name},
          {"state", process.state},
          {"command", process.command},
          {"executable", process.executable},
          {"cwd", process.folder},
          {"mappedBytes", process.mapped_bytes},
          {"savedBytes", process.saved_bytes},
          {"files", FilesToJson(process, false)},
          {"sockets", FilesToJson(process, true)}};
}

}  // namespace

json ToJson(const Inspection& found) {
  json processes = json::array();
  for (const InspectedProcess& process : found.processes) {
    processes.push_back(ProcessToJson(process));
  }
  json object = {
      {"source", found.source},
      {"container",
       {{"id", found.config.id},
        {"name", found.spec.container.empty() ? found.config.name : found.spec.container},
        {"image", found.config.rootfs_image_name},
        {"imageRef", found.config.rootfs_image_ref},
        {"runtime", found.config.runtime},
        {"created", found.config.created_time},
        {"checkpointed", found.config.checkpointed_time}}},
      {"pod",
       {{"name", found.spec.pod},
        {"namespace", found.spec.pod_namespace},
        {"uid", found.spec.pod_uid}}},
      {"engine", found.spec.engine},
      {"sizes",
       {{"archive", found.archive_bytes},
        {"images", found.images_bytes},
        {"pages", found.pages_bytes},
        {"rootfsDiff", found.rootfs_bytes}}},
      {"processes", processes},
  };
  if (found.freezing) object["times"]["freezingMicroseconds"] = found.freezing->count();
  if (found.frozen) object["times"]["frozenMicroseconds"] = found.frozen->count();
  if (found.manifest) {
    object["times"]["totalMicroseconds"] = found.manifest->total.count();
    object["writer"] = {{"stasisVersion", found.manifest->stasis_version},
                        {"hostArch", found.manifest->host_arch},
                        {"hostKernel", found.manifest->host_kernel}};
    object["notes"] = found.manifest->notes;
  }
  return object;
}

}  // namespace stasis::archive
