// kubectl checkpoint: checkpoints of a pod's containers, and what becomes of them.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "cmd/kubectl-checkpoint/commands.h"

namespace stasis::kubectl {

int Report(const Status& status) {
  if (status.ok()) return EXIT_SUCCESS;
  std::fprintf(stderr, "error: %s\n", Message(status).c_str());
  return status.code() == StatusCode::kDeadlineExceeded ? kExitTimeout : kExitFailure;
}

namespace {

using kubelet_api::Cluster;

using Action = Result<int> (*)(Cluster& cluster, const Options& options);

// As kubectl writes times: 90s, 5m, 1h; a number alone is seconds.
void AddTimeout(CLI::App& app, Options& options, const char* what) {
  app.add_option("--timeout", options.timeout_seconds, what)
      ->transform(
          CLI::AsNumberWithUnit(std::map<std::string, int>{{"s", 1}, {"m", 60}, {"h", 3600}},
                                CLI::AsNumberWithUnit::CASE_SENSITIVE, "TIME"))
      ->check(CLI::Range(1, 86400));
}

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
  app.footer(
      "Exit code 1: nothing succeeded; 2: wrong usage; 3: some of it did, or a checkpoint is made "
      "and "
      "then not\nsaved or pushed; 4: nothing did within --timeout.");
  app.add_option("pod", options.subject, "The pod");
  AddCommon(app, options);
  AddContainers(app, options);
  app.add_flag("--wait", options.wait,
               "Waits until the pod is ready, for 5m or as long as --timeout says");
  AddTimeout(app, options, "How long each checkpoint may take: 90s, 5m");
  app.add_option("--output", options.output, "Saves the archive to this new file, too");
  app.add_option(
      "--image", options.image,
      "Has the node push an image of it, too: REGISTRY/NAME:TAG, where its agent may push to");
  app.add_option("--compress", options.compression,
                 "none, zstd, or zstd:LEVEL with a level from 1 to 9, by the agent alone; what the "
                 "pod, its namespace or the node says unless given");
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
    AddTimeout(*one, options, "How long each node has to answer; 15s unless given");
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
    return app.exit(error) == 0 ? EXIT_SUCCESS : kExitUsage;
  }
  if (action == Create && options.subject.empty()) {
    std::fprintf(stderr, "error: name a pod; see --help\n");
    return kExitUsage;
  }
  const std::map<std::string, kubelet_api::Via> ways = {{"auto", kubelet_api::Via::kAuto},
                                                        {"agent", kubelet_api::Via::kAgent},
                                                        {"kubelet", kubelet_api::Via::kKubelet}};
  options.cluster.via = ways.at(options.via);
  Cluster cluster(options.cluster);
  if (!options.compression.empty() && options.via == "kubelet") {
    std::fprintf(stderr, "error: --compress needs the agent: the kubelet does not know it\n");
    return kExitUsage;
  }
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
