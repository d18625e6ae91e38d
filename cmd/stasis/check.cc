// stasis check: can this kernel and this user checkpoint and restore, and can this workload be?
#include <algorithm>
#include <iterator>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "cmd/stasis/commands.h"
#include "cmd/stasis/engine_options.h"
#include "cmd/stasis/probes.h"
#include "cri/checkpoint/container_checkpoint.h"
#include "cri/checkpoint/own_mounts.h"
#include "cri/client.h"
#include "engine/dump_check.h"
#include "engine/mounts/mounts_here.h"

namespace stasis::cli {
namespace {

void PrintJson(const std::vector<Probe>& probes, bool usable) {
  nlohmann::json list = nlohmann::json::array();
  for (const Probe& probe : probes) {
    nlohmann::json one = {{"name", probe.name},
                          {"works", probe.works},
                          {"required", probe.required},
                          {"detail", probe.detail}};
    if (!probe.works) one["consequence"] = probe.consequence;
    list.push_back(one);
  }
  std::printf("%s\n", JsonText({{"usable", usable}, {"probes", list}}).c_str());
}

void PrintText(const std::vector<Probe>& probes) {
  for (const Probe& probe : probes) {
    const char* const verdict = probe.works ? "yes" : probe.required ? "NO" : "no";
    std::printf("%-17s %-3s %s\n", probe.name.c_str(), verdict, probe.detail.c_str());
    if (!probe.works) std::printf("%-21s -> %s\n", "", probe.consequence.c_str());
  }
}

struct Options {
  pid_t pid = 0;
  std::string container, runtime_endpoint;
  engine::Options engine;
  bool json = false;
};

Status CheckKernel(bool as_json) {
  const std::vector<Probe> probes = RunProbes();
  const auto missing = std::ranges::count_if(
      probes, [](const Probe& probe) { return probe.required && !probe.works; });
  if (as_json) {
    PrintJson(probes, missing == 0);
  } else {
    PrintText(probes);
  }
  if (missing == 0) return OkStatus();
  return FailedPrecondition(std::to_string(missing) + " of what is needed is missing here");
}

void Print(const engine::DumpCheck& found, pid_t pid, bool as_json) {
  if (as_json) {
    std::printf("%s\n", JsonText({{"pid", pid},
                                  {"can_be_checkpointed", found.obstacles.empty()},
                                  {"processes", found.processes},
                                  {"threads", found.threads},
                                  {"open_files", found.files},
                                  {"obstacles", found.obstacles},
                                  {"notes", found.notes}})
                            .c_str());
    return;
  }
  std::printf("pid %d: %llu processes, %llu threads, %llu open files\n", pid,
              static_cast<unsigned long long>(found.processes),
              static_cast<unsigned long long>(found.threads),
              static_cast<unsigned long long>(found.files));
  for (const std::string& obstacle : found.obstacles) {
    std::printf("NO   %s\n", OneLine(obstacle).c_str());
  }
  for (const std::string& note : found.notes) std::printf("note %s\n", OneLine(note).c_str());
  if (found.obstacles.empty()) std::printf("yes  it can be checkpointed\n");
}

Status CheckWorkload(Options& options) {
  engine::CompareMounts compare;
  if (!options.container.empty()) {
    if (options.runtime_endpoint.empty()) {
      ASSIGN_OR_RETURN(options.runtime_endpoint, cri::UsualEndpoint());
    }
    ASSIGN_OR_RETURN(const cri::ContainerFacts facts,
                     cri::DescribeRunningAt(options.runtime_endpoint, options.container, {}));
    options.pid = facts.pid;
    compare = cri::CompareWithSpecification(facts);
  } else {
    compare = [&options](std::span<const engine::Mount> mounts) {
      return engine::CompareWithHere(mounts, options.pid, options.engine.external);
    };
  }
  options.engine.own_namespaces =
      options.container.empty();  // a container's are made by its runtime
  ASSIGN_OR_RETURN(engine::DumpCheck found,
                   engine::CheckDump(options.pid, options.engine, compare));
  if (options.container.empty()) {
    std::ranges::move(engine::NeedsOfRestore(options.pid), std::back_inserter(found.notes));
  }
  Print(found, options.pid, options.json);
  if (found.obstacles.empty()) return OkStatus();
  const std::size_t count = found.obstacles.size();
  return FailedPrecondition("it cannot be checkpointed: " + std::to_string(count) +
                            (count == 1 ? " obstacle" : " obstacles"));
}

}  // namespace

void AddCheck(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "check",
      "Tries what this kernel and this user can do, and says what follows; of a workload, whether "
      "it can be checkpointed, and why not. It runs on undisturbed.");
  CLI::Option* pid =
      command->add_option("--pid,--tree,-t", options->pid, "Root of a tree of processes")
          ->check(CLI::Range(pid_t{1}, std::numeric_limits<pid_t>::max()));
  command
      ->add_option("--container", options->container,
                   "Id of a running container, or an unambiguous beginning of it")
      ->check(NotEmpty())
      ->excludes(pid);
  command
      ->add_option("--runtime-endpoint", options->runtime_endpoint,
                   "The CRI socket that is asked for --container, as for `checkpoint`")
      ->envname("CONTAINER_RUNTIME_ENDPOINT");
  command->add_flag("--json", options->json, "The result as JSON");
  AddEngineOptions(*command, options->engine);
  command->footer(
      "Exit code 1: something that every checkpoint or restore needs is missing, or the workload "
      "cannot\nbe checkpointed.\nExample: stasis check --pid 1234");
  command->callback([options, &exit_code] {
    const bool of_workload = options->pid != 0 || !options->container.empty();
    exit_code = Report(of_workload ? CheckWorkload(*options) : CheckKernel(options->json));
  });
}

}  // namespace stasis::cli
