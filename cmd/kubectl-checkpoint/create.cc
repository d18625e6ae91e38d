// kubectl checkpoint POD, and check POD.
#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "cmd/kubectl-checkpoint/commands.h"
#include "cmd/kubectl-checkpoint/output.h"
#include "cmd/kubectl-checkpoint/progress.h"

namespace stasis::kubectl {
namespace {

using kubelet_api::Cluster;
using kubelet_api::Pod;
using nlohmann::json;

constexpr int kLongestWaitSeconds = 300;  // for a pod, unless --timeout says otherwise

Result<std::vector<std::string>> Wanted(const Options& options, const Pod& pod) {
  const auto& containers = options.containers.empty() ? pod.running : options.containers;
  if (containers.empty()) {
    return FailedPrecondition("no container of pod " + pod.name + " runs; see --wait");
  }
  for (const std::string& container : containers) {
    if (std::ranges::count(pod.running, container) + std::ranges::count(pod.ephemeral, container) ==
        0) {
      return NotFound("no container " + container + " of pod " + pod.name + " runs");
    }
  }
  if ((!options.output.empty() || !options.image.empty()) && containers.size() != 1) {
    return InvalidArgument("--output and --image take one archive: name one container with -c");
  }
  return containers;
}

// In a query (RFC 3986): all that is not plain as %XX.
std::string Escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-' || c == '_') {
      escaped += c;
    } else {
      std::array<char, 4> code;
      std::snprintf(code.data(), code.size(), "%%%02X", static_cast<unsigned char>(c));
      escaped += code.data();
    }
  }
  return escaped;
}

Result<kubelet_api::MadeCheckpoint> MakeOne(Cluster& cluster, const Options& options,
                                            const Pod& pod, const std::string& container,
                                            const std::string& pod_namespace) {
  const Progress progress(cluster, pod, pod_namespace, container);
  const kubelet_api::CheckpointWishes wishes = {.timeout_seconds = options.timeout_seconds,
                                                .compression = Escaped(options.compression)};
  auto made = cluster.Checkpoint(pod, container, wishes);
  if (made.status().code() != StatusCode::kAlreadyExists) return made;
  // The kubelet names archives by the second, and the last one of this container was made in this one.
  std::this_thread::sleep_for(std::chrono::seconds(1));
  return cluster.Checkpoint(pod, container, wishes);
}

// What is wanted of an archive that is made: the row of it is shown whatever becomes of that.
Status Use(Cluster& cluster, const Options& options, const Pod& pod, const std::string& path,
           json& row) {
  if (!options.output.empty()) {
    Say("saving it to " + options.output);
    RETURN_IF_ERROR(SaveTo(cluster, pod.node, path, options.output));
  }
  if (options.image.empty()) return OkStatus();
  Say("pushing it to " + options.image);
  ASSIGN_OR_RETURN(const json pushed,
                   cluster.Post(pod.node, path + "/image?reference=" + Escaped(options.image)));
  row["image"] = pushed.value("image", "");
  row["digest"] = pushed.value("digest", "");
  return OkStatus();
}

}  // namespace

Result<int> Create(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, cluster.Namespace());
  if (options.wait) {
    RETURN_IF_ERROR(cluster.WaitReady(options.subject, options.timeout_seconds > 0
                                                           ? options.timeout_seconds
                                                           : kLongestWaitSeconds));
  }
  ASSIGN_OR_RETURN(const Pod pod, cluster.FindPod(options.subject));
  ASSIGN_OR_RETURN(const std::vector<std::string> containers, Wanted(options, pod));
  json rows = json::array();
  Status last = OkStatus();
  for (const std::string& container : containers) {
    const auto made = MakeOne(cluster, options, pod, container, pod_namespace);
    if (!made.ok()) {
      last = made.status();
      Report(last);
      continue;
    }
    const std::string name = std::filesystem::path(made->path).filename();
    json row = {{"name", name},           {"pod", pod.name},
                {"container", container}, {"namespace", pod_namespace},
                {"node", pod.node.name},  {"path", made->path}};
    if (made->report.is_object()) row.update(made->report);
    const Status used = Use(cluster, options, pod, PathOf(pod_namespace, name), row);
    if (!used.ok()) {
      last = Annotate(used, "checkpoint " + name + " is made, but");
      Report(last);
    }
    rows.push_back(row);
  }
  if (!rows.empty()) PrintCheckpoints(rows, options.format);
  if (last.ok()) return EXIT_SUCCESS;
  if (!rows.empty()) return kExitPartial;
  return last.code() == StatusCode::kDeadlineExceeded ? kExitTimeout : kExitFailure;
}

Result<int> Check(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, cluster.Namespace());
  ASSIGN_OR_RETURN(const Pod pod, cluster.FindPod(options.subject));
  ASSIGN_OR_RETURN(const std::vector<std::string> containers, Wanted(options, pod));
  const std::string of_pod =
      "/v1/namespaces/" + pod_namespace + "/pods/" + pod.name + "/containers/";
  json rows = json::array();
  bool all = true;
  for (const std::string& container : containers) {
    std::string path = of_pod;
    path.append(container).append("/check");
    ASSIGN_OR_RETURN(json row, cluster.Get(pod.node, path));
    row["name"] = container;
    all = all && row.value("canBeCheckpointed", false);
    rows.push_back(row);
  }
  Print(rows,
        {{"CONTAINER", "name"},
         {"POSSIBLE", "canBeCheckpointed"},
         {"OBSTACLES", "obstacles"},
         {"PROCESSES", "processes", true},
         {"NOTES", "notes", true}},
        options.format);
  return all ? EXIT_SUCCESS : kExitFailure;
}

}  // namespace stasis::kubectl
