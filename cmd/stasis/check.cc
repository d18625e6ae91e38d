// stasis check: can this kernel and this user checkpoint and restore?
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cmd/stasis/commands.h"
#include "cmd/stasis/probes.h"

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

Status Check(bool as_json) {
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

}  // namespace

void AddCheck(CLI::App& program, int& exit_code) {
  const auto json = std::make_shared<bool>(false);
  CLI::App* command = program.add_subcommand(
      "check", "Tries what this kernel and this user can do, and says what follows.");
  command->add_flag("--json", *json, "The result as JSON");
  command->footer("Exit code 1: something that every checkpoint or restore needs is missing.");
  command->callback([json, &exit_code] { exit_code = Report(Check(*json)); });
}

}  // namespace stasis::cli
