// stasis verify: is an archive whole and unaltered?
#include <memory>
#include <nlohmann/json.hpp>

#include "archive/archive.h"
#include "cmd/stasis/commands.h"

namespace stasis::cli {
namespace {

struct Options {
  std::string archive;
  bool json = false;
};

Status Verify(const Options& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<archive::Archive> archive,
                   archive::Archive::Open(options.archive));
  ASSIGN_OR_RETURN(const archive::Verification result, archive::Verify(*archive));
  if (options.json) {
    const nlohmann::json json = {{"archive", options.archive},    {"ok", result.problems.empty()},
                                 {"hashes", result.has_manifest}, {"members", result.members},
                                 {"bytes", result.bytes},         {"problems", result.problems},
                                 {"notes", result.notes}};
    std::printf("%s\n", json.dump(2).c_str());
  } else {
    for (const std::string& note : result.notes) std::printf("note: %s\n", note.c_str());
    for (const std::string& problem : result.problems)
      std::printf("problem: %s\n", problem.c_str());
    if (result.problems.empty()) {
      std::printf("%s: %llu members, %s, %s\n", options.archive.c_str(),
                  static_cast<unsigned long long>(result.members), Bytes(result.bytes).c_str(),
                  result.has_manifest ? "all hashes match" : "sound, without hashes to compare");
    }
  }
  if (result.problems.empty()) return OkStatus();
  return DataLoss(options.archive + " is not as it was written");
}

}  // namespace

void AddVerify(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "verify", "Checks an archive's structure and the hash of every member.");
  command->add_option("archive", options->archive, "The archive, or a folder with an unpacked one")
      ->required();
  command->add_flag("--json", options->json, "The result as JSON");
  command->footer("Example: stasis verify /var/lib/kubelet/checkpoints/checkpoint-….tar");
  command->callback([options, &exit_code] { exit_code = Report(Verify(*options)); });
}

}  // namespace stasis::cli
