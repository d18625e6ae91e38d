// kubectl checkpoint: checkpoints of a pod's containers, and what becomes of them.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "cmd/kubectl-checkpoint/output.h"
#include "engine/base/io.h"
#include "kubelet-api/client/cluster.h"

namespace stasis::kubectl {
namespace {

using kubelet_api::Cluster;
using kubelet_api::Node;
using kubelet_api::Pod;
using nlohmann::json;

constexpr int kExitFailure = 1;
constexpr int kExitPartial = 3;

const std::vector<Column> kColumns = {{"NAME", "name"},
                                      {"POD", "pod"},
                                      {"CONTAINER", "container"},
                                      {"NAMESPACE", "namespace", true},
                                      {"NODE", "node"},
                                      {"SIZE", "sizeBytes", true},
                                      {"CREATED", "created", true}};

struct Options {
  kubelet_api::ClusterOptions cluster;
  std::string via = "auto";
  std::string subject;  // a pod or an archive
  std::vector<std::string> containers;
  std::string node;
  std::string format;
  std::string output;
  int timeout_seconds = 0;
};

int Report(const Status& status) {
  if (status.ok()) return EXIT_SUCCESS;
  std::fprintf(stderr, "error: %s\n", Message(status).c_str());
  return kExitFailure;
}

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

Result<std::vector<std::string>> Wanted(const Options& options, const Pod& pod) {
  const auto& containers = options.containers.empty() ? pod.running : options.containers;
  if (containers.empty()) return FailedPrecondition("no container of pod " + pod.name + " runs");
  for (const std::string& container : containers) {
    if (std::ranges::find(pod.running, container) == pod.running.end()) {
      return NotFound("no container " + container + " of pod " + pod.name + " runs");
    }
  }
  if (!options.output.empty() && containers.size() != 1) {
    return InvalidArgument("--output takes one archive: name one container with -c");
  }
  return containers;
}

Result<int> Create(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, cluster.Namespace());
  ASSIGN_OR_RETURN(const Pod pod, cluster.FindPod(options.subject));
  ASSIGN_OR_RETURN(const std::vector<std::string> containers, Wanted(options, pod));
  json rows = json::array();
  std::size_t failed = 0;
  for (const std::string& container : containers) {
    if (::isatty(STDERR_FILENO) != 0) {
      std::fprintf(stderr, "checkpointing %s/%s on %s\n", pod.name.c_str(), container.c_str(),
                   pod.node.name.c_str());
    }
    const Result<std::string> path = cluster.Checkpoint(pod, container, options.timeout_seconds);
    if (!path.ok()) {
      ++failed;
      Report(path.status());
      continue;
    }
    const std::string name = std::filesystem::path(*path).filename();
    rows.push_back({{"name", name},
                    {"pod", pod.name},
                    {"container", container},
                    {"namespace", pod_namespace},
                    {"node", pod.node.name},
                    {"path", *path}});
    if (options.output.empty()) continue;
    RETURN_IF_ERROR(SaveTo(cluster, pod.node, PathOf(pod_namespace, name), options.output));
  }
  if (!rows.empty()) Print(rows, kColumns, options.format);
  if (failed == 0) return EXIT_SUCCESS;
  return rows.empty() ? kExitFailure : kExitPartial;
}

Result<std::vector<Node>> NodesOf(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(std::vector<Node> nodes, cluster.Nodes());
  if (options.node.empty()) return nodes;
  std::erase_if(nodes, [&](const Node& node) { return node.name != options.node; });
  if (nodes.empty()) return NotFound("there is no node " + options.node);
  return nodes;
}

Result<int> List(Cluster& cluster, const Options& options) {
  ASSIGN_OR_RETURN(const std::string pod_namespace, cluster.Namespace());
  ASSIGN_OR_RETURN(const std::vector<Node> nodes, NodesOf(cluster, options));
  json rows = json::array();
  std::size_t failed = 0;
  for (const Node& node : nodes) {
    const Result<json> answer =
        cluster.Get(node, "/v1/namespaces/" + pod_namespace + "/checkpoints");
    if (!answer.ok()) {
      ++failed;
      std::fprintf(stderr, "error: node %s: %s\n", node.name.c_str(),
                   Message(answer.status()).c_str());
      continue;
    }
    for (json row : answer->value("items", json::array())) {
      row["node"] = node.name;
      rows.push_back(row);
    }
  }
  Print(rows, kColumns, options.format);
  if (failed == 0) return EXIT_SUCCESS;
  return failed == nodes.size() ? kExitFailure : kExitPartial;
}

/// The node that has the archive; the first that answers for it.
Result<Node> NodeWith(Cluster& cluster, const Options& options, const std::string& pod_namespace) {
  ASSIGN_OR_RETURN(const std::vector<Node> nodes, NodesOf(cluster, options));
  Status last = NotFound("there are no nodes");
  for (const Node& node : nodes) {
    const Result<json> answer =
        cluster.Get(node, "/v1/namespaces/" + pod_namespace + "/checkpoints");
    if (!answer.ok()) {
      last = Annotate(answer.status(), "node " + node.name);
      continue;
    }
    for (const json& item : answer->value("items", json::array())) {
      if (item.value("name", "") == options.subject) return node;
    }
    if (last.code() == StatusCode::kNotFound) {
      last = NotFound("no node has checkpoint " + options.subject + " in namespace " +
                      pod_namespace + "; see kubectl checkpoint list");
    }
  }
  return last;
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

using Action = Result<int> (*)(Cluster& cluster, const Options& options);

void AddCommon(CLI::App& app, Options& options) {
  app.add_option("-n,--namespace", options.cluster.pod_namespace, "The pod's namespace");
  app.add_option("-o", options.format, "json, yaml, name or wide")
      ->check(CLI::IsMember({"json", "yaml", "name", "wide"}));
  for (const char* const flag : {"--kubeconfig", "--context", "--cluster", "--user", "--as"}) {
    app.add_option_function<std::string>(
        flag,
        [&options, flag](const std::string& value) {
          options.cluster.flags.push_back(std::string(flag) + "=" + value);
        },
        "Passed on to kubectl");
  }
  app.add_option("--agent-port", options.cluster.agent_port, "Where stasisd serves its REST API")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  app.add_option("--agent-ca", options.cluster.agent_ca,
                 "The authority of the agents' certificates (PEM); the cluster's own unless given");
}

void AddContainers(CLI::App& app, Options& options) {
  app.add_option("-c,--container", options.containers, "A container; all that run unless given")
      ->allow_extra_args(false);
}

void Declare(CLI::App& app, Options& options, Action& action) {
  app.description(
      "Checkpoints the containers of a pod. They run on.\n\n"
      "  kubectl checkpoint POD [-c CONTAINER] [OPTIONS]\n"
      "  kubectl checkpoint list | inspect NAME | delete NAME | check POD [OPTIONS]");
  app.set_version_flag("--version", STASIS_VERSION);
  app.footer("Exit code 1: nothing succeeded; 2: wrong usage; 3: some of it did.");
  app.add_option("pod", options.subject, "The pod");
  AddCommon(app, options);
  AddContainers(app, options);
  app.add_option("--timeout", options.timeout_seconds, "Seconds for each checkpoint")
      ->check(CLI::Range(1, 86400));
  app.add_option("--output", options.output, "Saves the archive to this file, too");
  app.add_option("--via", options.via, "The way: by stasisd's REST API, or by the kubelet's")
      ->check(CLI::IsMember({"auto", "agent", "kubelet"}))
      ->capture_default_str();
  const auto command = [&](const char* name, const char* what, Action does) {
    CLI::App* const made = app.add_subcommand(name, what);
    made->callback([&action, does] { action = does; });
    AddCommon(*made, options);
    return made;
  };
  CLI::App* const list = command("list", "Lists checkpoints on all nodes", List);
  CLI::App* const inspect = command("inspect", "Shows what is in a checkpoint", Inspect);
  CLI::App* const remove = command("delete", "Deletes a checkpoint", Delete);
  CLI::App* const check = command("check", "Tells whether a pod could be checkpointed", Check);
  for (CLI::App* const one : {list, inspect, remove}) {
    one->add_option("--node", options.node, "Asks this node alone");
  }
  for (CLI::App* const one : {inspect, remove}) {
    one->add_option("name", options.subject, "Name of the archive")->required();
  }
  inspect->add_option("--output", options.output, "Saves the archive to this file instead");
  check->add_option("pod", options.subject, "The pod")->required();
  AddContainers(*check, options);
}

int Main(int argc, char** argv) {
  Options options;
  Action action = Create;
  CLI::App app;
  Declare(app, options, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? EXIT_SUCCESS : 2;
  }
  if (action == Create && options.subject.empty()) {
    std::fprintf(stderr, "error: name a pod; see --help\n");
    return 2;
  }
  const std::map<std::string, kubelet_api::Via> ways = {{"auto", kubelet_api::Via::kAuto},
                                                        {"agent", kubelet_api::Via::kAgent},
                                                        {"kubelet", kubelet_api::Via::kKubelet}};
  options.cluster.via = ways.at(options.via);
  Cluster cluster(options.cluster);
  const Result<int> code = action(cluster, options);
  return code.ok() ? *code : Report(code.status());
}

}  // namespace
}  // namespace stasis::kubectl

int main(int argc, char** argv) {
  try {
    return stasis::kubectl::Main(argc, argv);
  } catch (
      const std::exception& error) {  // of the libraries: JSON of an unexpected shape, no memory
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
