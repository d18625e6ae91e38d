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
  ASSIGN_OR_RETURN(const std::unique_ptr<archive::Archive> archive, OpenArchive(options.archive));
  Result<archive::Verification> verified = [&] {
    Progress progress("verifying");
    return archive::Verify(*archive, std::ref(progress));
  }();
  ASSIGN_OR_RETURN(const archive::Verification result, std::move(verified));
  if (options.json) {
    const nlohmann::json json = {{"archive", options.archive},    {"ok", result.problems.empty()},
                                 {"hashes", result.has_manifest}, {"members", result.members},
                                 {"bytes", result.bytes},         {"problems", result.problems},
                                 {"notes", result.notes}};
    std::printf("%s\n", JsonText(json).c_str());
  } else {
    for (const std::string& note : result.notes) std::printf("note: %s\n", note.c_str());
    for (const std::string& problem : result.problems)
      std::printf("problem: %s\n", problem.c_str());
    if (result.problems.empty()) {
      std::printf("%s: %llu members, %s, %s\n", OneLine(options.archive).c_str(),
                  static_cast<unsigned long long>(result.members), Bytes(result.bytes).c_str(),
                  result.has_manifest ? "all hashes match" : "sound, without hashes to compare");
    }
  }
  if (result.problems.empty()) return OkStatus();
  const std::size_t others = result.problems.size() - 1;
  return DataLoss(options.archive + " is not as it was written: " + result.problems.front() +
                  (others == 0 ? "" : ", and " + std::to_string(others) + " more"));
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
