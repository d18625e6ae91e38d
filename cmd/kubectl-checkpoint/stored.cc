// kubectl checkpoint list, inspect, delete: of what lies on the nodes.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "cmd/kubectl-checkpoint/commands.h"
#include "cmd/kubectl-checkpoint/output.h"
#include "engine/base/io.h"

namespace stasis::kubectl {
namespace {

using kubelet_api::Cluster;
using kubelet_api::Node;
using nlohmann::json;

constexpr int kNodeSeconds = 15;  // for each node's answer, unless --timeout says otherwise

Result<std::vector<Node>> NodesOf(Cluster& cluster, const Options& options) {
  Result<std::vector<Node>> nodes = cluster.Nodes();
  if (nodes.status().code() == StatusCode::kPermissionDenied) {
    std::fprintf(
        stderr,
        "note: you may not list nodes, so those are asked on which pods of the namespace are\n");
    nodes = cluster.NodesOfPods();
  }
  RETURN_IF_ERROR(nodes.status());
  if (options.node.empty()) return nodes;
  std::erase_if(*nodes, [&](const Node& node) { return node.name != options.node; });
  if (nodes->empty()) return NotFound("there is no node " + options.node);
  return nodes;
}

std::vector<Result<json>> Ask(Cluster& cluster, const Options& options,
                              const std::vector<Node>& nodes, const std::string& pod_namespace) {
  return cluster.GetAll(nodes, "/v1/namespaces/" + pod_namespace + "/checkpoints",
                        options.timeout_seconds > 0 ? options.timeout_seconds : kNodeSeconds);
}

/// The node that has the archive; the first that answers for it.
Result<Node> NodeWith(Cluster& cluster, const Options& options, const std::string& pod_namespace) {
  ASSIGN_OR_RETURN(const std::vector<Node> nodes, NodesOf(cluster, options));
  const std::vector<Result<json>> answers = Ask(cluster, options, nodes, pod_namespace);
  Status last = NotFound("no node has checkpoint " + options.subject + " in namespace " +
                         pod_namespace + "; see kubectl checkpoint list");
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (!answers[i].ok()) {
      last = Annotate(answers[i].status(), "node " + nodes[i].name);
      continue;
    }
    for (const json& item : answers[i]->value("items", json::array())) {
      if (item.value("name", "") == options.subject) return nodes[i];
    }
  }
  return last;
}

}  // namespace

std::string PathOf(const std::string& pod_namespace, const std::string& name) {
  // The name's colons and plus signs are plain in a path (RFC 3986); the agent takes no other odd ones.
  return "/v1/namespaces/" + pod_namespace + "/checkpoints/" + name;
}

Status SaveTo(Cluster& cluster, const Node& node, const std::string& path,
              const std::string& file) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(AT_FDCWD, file, O_WRONLY | O_CREAT | O_EXCL, 0600));
  Status saved = cluster.Download(node, path + "/archive", fd.get());
  if (saved.ok() && ::fsync(fd.get()) != 0) {
    const int error = errno;
    saved = SyscallError(error, "write " + file);
  }
  if (!saved.ok()) ::unlink(file.c_str());
  return saved;
}

void PrintCheckpoints(const json& rows, const std::string& format) {
  static const std::vector<Column> kColumns = {{"NAME", "name"},
                                               {"POD", "pod"},
                                               {"CONTAINER", "container"},
                                               {"NAMESPACE", "namespace", true},
                                               {"NODE", "node"},
                                               {"SIZE", "sizeBytes", true},
                                               {"CREATED", "created", true},
                                               {"IMAGE", "image", true}};
  Print(rows, kColumns, format);
}

Result<int> List(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, cluster.Namespace());
  ASSIGN_OR_RETURN(const std::vector<Node> nodes, NodesOf(cluster, options));
  const std::vector<Result<json>> answers = Ask(cluster, options, nodes, pod_namespace);
  json rows = json::array();
  std::size_t failed = 0;
  std::size_t late = 0;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (!answers[i].ok()) {
      ++failed;
      if (answers[i].status().code() == StatusCode::kDeadlineExceeded) ++late;
      std::fprintf(stderr, "error: node %s: %s\n", nodes[i].name.c_str(),
                   Message(answers[i].status()).c_str());
      continue;
    }
    for (json row : answers[i]->value("items", json::array())) {
      row["node"] = nodes[i].name;
      rows.push_back(row);
    }
  }
  PrintCheckpoints(rows, options.format);
  if (failed == 0) return EXIT_SUCCESS;
  if (failed < nodes.size()) return kExitPartial;
  return late == failed ? kExitTimeout : kExitFailure;
}

Result<int> Inspect(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, cluster.Namespace());
  ASSIGN_OR_RETURN(const Node node, NodeWith(cluster, options, pod_namespace));
  const std::string path = PathOf(pod_namespace, options.subject);
  if (!options.output.empty()) {
    RETURN_IF_ERROR(SaveTo(cluster, node, path, options.output));
    return EXIT_SUCCESS;
  }
  ASSIGN_OR_RETURN(const json answer, cluster.Get(node, path));
  PrintOne(answer, options.format);
  return EXIT_SUCCESS;
}

Result<int> Delete(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, cluster.Namespace());
  ASSIGN_OR_RETURN(const Node node, NodeWith(cluster, options, pod_namespace));
  RETURN_IF_ERROR(cluster.Delete(node, PathOf(pod_namespace, options.subject)).status());
  std::printf("checkpoint \"%s\" deleted\n", options.subject.c_str());
  return EXIT_SUCCESS;
}

}  // namespace stasis::kubectl
