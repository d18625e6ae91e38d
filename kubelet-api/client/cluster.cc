#include "kubelet-api/client/cluster.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace stasis::kubelet_api {
namespace {

using nlohmann::json;

Result<json> Parse(const std::string& text, const std::string& what) {
  json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return DataLoss(what + " answers something that is no JSON object");
  return parsed;
}

std::string TextAt(const json& object, const char* pointer) {
  const json::json_pointer at(pointer);
  return object.contains(at) && object[at].is_string() ? object[at].get<std::string>() : "";
}

json ArrayAt(const json& object, const char* pointer) {
  const json::json_pointer at(pointer);
  return object.contains(at) && object[at].is_array() ? object[at] : json::array();
}

constexpr std::size_t kMostAtOnce = 8;  // of kubectl, which takes some 50 MB each

// Where another way may still be open.
bool MayBeTriedElsewhere(const Status& status) {
  return status.code() == StatusCode::kPermissionDenied ||
         status.code() == StatusCode::kUnauthenticated || status.code() == StatusCode::kUnavailable;
}

Result<MadeCheckpoint> ArchiveOf(const Result<std::string>& answer) {
  RETURN_IF_ERROR(answer.status());
  ASSIGN_OR_RETURN(const json object, Parse(*answer, "the node"));
  MadeCheckpoint made = {.path = TextAt(object, "/items/0"),
                         .report = object.value("report", json::object())};
  if (made.path.empty()) return DataLoss("the node names no archive");
  return made;
}

std::string QueryOf(const CheckpointWishes& wishes) {
  std::string query;
  // The kubelet and the agent take less than 120 s for 120 s: who hangs up earlier ends the checkpoint, too.
  if (wishes.timeout_seconds > 0) query = "?timeout=" + std::to_string(wishes.timeout_seconds);
  if (!wishes.compression.empty()) {
    query += (query.empty() ? "?compress=" : "&compress=") + wishes.compression;
  }
  return query;
}

}  // namespace

Result<std::string> Cluster::Namespace() {
  if (!options_.pod_namespace.empty()) return options_.pod_namespace;
  ASSIGN_OR_RETURN(const std::string text,
                   kubectl_.Run({"config", "view", "--minify", "-o", "jsonpath={..namespace}"}));
  return text.empty() ? "default" : text;
}

Result<Pod> Cluster::FindPod(const std::string& name) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, Namespace());
  ASSIGN_OR_RETURN(const std::string text,
                   kubectl_.Run({"get", "pod", name, "-n", pod_namespace, "-o", "json"}));
  ASSIGN_OR_RETURN(const json object, Parse(text, "kubectl get pod"));
  Pod pod = {.name = name,
             .node = {TextAt(object, "/spec/nodeName"), TextAt(object, "/status/hostIP")},
             .running = {},
             .ephemeral = {}};
  if (pod.node.name.empty()) {
    return FailedPrecondition("pod " + name + " is on no node yet");
  }
  const auto add = [&](const char* statuses, std::vector<std::string>& to) {
    for (const json& status : ArrayAt(object, statuses)) {
      if (status.contains("/state/running"_json_pointer)) to.push_back(TextAt(status, "/name"));
    }
  };
  add("/status/initContainerStatuses", pod.running);
  add("/status/containerStatuses", pod.running);
  add("/status/ephemeralContainerStatuses", pod.ephemeral);
  return pod;
}

Result<std::vector<Node>> Cluster::Nodes() {
  ASSIGN_OR_RETURN(const std::string text, kubectl_.Run({"get", "nodes", "-o", "json"}));
  ASSIGN_OR_RETURN(const json object, Parse(text, "kubectl get nodes"));
  std::vector<Node> nodes;
  for (const json& item : ArrayAt(object, "/items")) {
    Node& node = nodes.emplace_back(Node{TextAt(item, "/metadata/name"), {}});
    for (const json& address : ArrayAt(item, "/status/addresses")) {
      if (TextAt(address, "/type") == "InternalIP" && node.address.empty()) {
        node.address = TextAt(address, "/address");
      }
    }
  }
  return nodes;
}

Result<std::vector<Node>> Cluster::NodesOfPods() {
  ASSIGN_OR_RETURN(const std::string pod_namespace, Namespace());
  ASSIGN_OR_RETURN(const std::string text,
                   kubectl_.Run({"get", "pods", "-n", pod_namespace, "-o", "json"}));
  ASSIGN_OR_RETURN(const json object, Parse(text, "kubectl get pods"));
  std::map<std::string, std::string> addresses;
  for (const json& item : ArrayAt(object, "/items")) {
    const std::string address = TextAt(item, "/status/hostIP");
    if (!address.empty()) addresses[TextAt(item, "/spec/nodeName")] = address;
  }
  std::vector<Node> nodes;
  nodes.reserve(addresses.size());
  for (const auto& [name, address] : addresses) nodes.push_back({name, address});
  return nodes;
}

Status Cluster::WaitReady(const std::string& name, int timeout_seconds) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, Namespace());
  return kubectl_
      .Run({"wait", "--for=condition=Ready", "pod/" + name, "-n", pod_namespace,
            "--timeout=" + std::to_string(timeout_seconds) + "s"})
      .status();
}

Kubectl Cluster::ToAgent(const Node& node) const {
  std::vector<std::string> flags = options_.flags;
  const bool six = node.address.find(':') != std::string::npos;
  flags.push_back("--server=https://" + (six ? "[" + node.address + "]" : node.address) + ":" +
                  std::to_string(options_.agent_port));
  if (!options_.agent_ca.empty()) {
    flags.push_back("--certificate-authority=" + options_.agent_ca);
  }
  return Kubectl(flags);
}

bool Cluster::AgentAnswers(const Node& node) {
  if (node.address.empty()) return false;
  const auto known = agents_.find(node.name);
  if (known != agents_.end()) return known->second;
  const bool answers = ToAgent(node).Run({"get", "--raw", "/healthz", "--request-timeout=5s"}).ok();
  return agents_[node.name] = answers;
}

Result<MadeCheckpoint> Cluster::Checkpoint(const Pod& pod, const std::string& container,
                                           const CheckpointWishes& wishes) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, Namespace());
  const std::string path =
      "/checkpoint/" + pod_namespace + "/" + pod.name + "/" + container + QueryOf(wishes);
  const auto ask = [&](const Kubectl& kubectl, const std::string& whole) {
    return ArchiveOf(kubectl.Run({"create", "--raw", whole, "-f", "-"},
                                 std::chrono::seconds(wishes.timeout_seconds)));
  };
  Status by_agent = Unavailable("no agent answers on node " + pod.node.name);
  if (options_.via == Via::kAgent || (options_.via == Via::kAuto && AgentAnswers(pod.node))) {
    Result<MadeCheckpoint> made = ask(ToAgent(pod.node), path);
    if (made.ok() || options_.via == Via::kAgent || !MayBeTriedElsewhere(made.status())) {
      return made;
    }
    by_agent = made.status();
  }
  // It does not know the wish, and would make an archive as if there was none.
  if (!wishes.compression.empty()) {
    return Annotate(by_agent, "--compress, which the agent alone does");
  }
  Result<MadeCheckpoint> made = ask(kubectl_, "/api/v1/nodes/" + pod.node.name + "/proxy" + path);
  if (made.ok() || options_.via == Via::kKubelet || !MayBeTriedElsewhere(made.status())) {
    return made;
  }
  return MakeStatus(made.status().code(), "by the agent: " + Message(by_agent) +
                                              "; by the kubelet: " + Message(made.status()));
}

Result<json> Cluster::Get(const Node& node, const std::string& path) const {
  ASSIGN_OR_RETURN(const std::string text, ToAgent(node).Run({"get", "--raw", path}));
  return Parse(text, "the agent of node " + node.name);
}

std::vector<Result<json>> Cluster::GetAll(const std::vector<Node>& nodes, const std::string& path,
                                          int timeout_seconds) const {
  std::vector<Result<json>> answers(nodes.size(), Result<json>(Unavailable("not asked")));
  std::atomic<std::size_t> next = 0;
  const auto ask = [&] {
    for (std::size_t at = next++; at < nodes.size(); at = next++) {
      const Result<std::string> text =
          nodes[at].address.empty() ? Result<std::string>(Unavailable("it has no address"))
                                    : ToAgent(nodes[at]).Run({"get", "--raw", path},
                                                             std::chrono::seconds(timeout_seconds));
      answers[at] = text.ok() ? Parse(*text, "the agent of node " + nodes[at].name)
                              : Result<json>(text.status());
    }
  };
  const std::size_t count = std::min(nodes.size(), kMostAtOnce);
  std::vector<std::jthread> threads;
  threads.reserve(count);
  for (std::size_t i = 0; i < count; ++i) threads.emplace_back(ask);
  threads.clear();  // joins them
  return answers;
}

Result<json> Cluster::Post(const Node& node, const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ToAgent(node).Run({"create", "--raw", path, "-f", "-"}));
  return Parse(text, "the agent of node " + node.name);
}

Result<json> Cluster::Delete(const Node& node, const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ToAgent(node).Run({"delete", "--raw", path}));
  return Parse(text, "the agent of node " + node.name);
}

Status Cluster::Download(const Node& node, const std::string& path, int fd) {
  return ToAgent(node).RunTo(fd, {"get", "--raw", path});
}

}  // namespace stasis::kubelet_api
