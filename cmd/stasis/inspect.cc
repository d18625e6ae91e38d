// stasis inspect: what is in a checkpoint.
#include "archive/inspect.h"

#include <algorithm>
#include <cinttypes>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "archive/archive.h"
#include "archive/member_name.h"
#include "cmd/stasis/commands.h"

namespace stasis::cli {
namespace {

using archive::DescribedFile;
using archive::InspectedProcess;
using archive::Inspection;
using archive::Printable;

struct Options {
  std::string archive;
  bool json = false;
};

std::string CommandText(const InspectedProcess& process) {
  if (process.command.empty()) return "[" + Printable(process.name) + "]";
  std::string text;
  for (const std::string& argument : process.command) {
    text += (text.empty() ? "" : " ") + Printable(argument);
  }
  return text;
}

void PrintField(const char* name, const std::string& value) {
  if (!value.empty()) std::printf("%-13s %s\n", name, Printable(value).c_str());
}

std::string Milliseconds(std::chrono::microseconds time) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f ms", static_cast<double>(time.count()) / 1000);
  return text;
}

void PrintDescription(const Inspection& found) {
  PrintField("Checkpoint", found.source);
  PrintField("Pod", found.spec.pod);
  PrintField("Namespace", found.spec.pod_namespace);
  PrintField("Container", found.spec.container.empty() ? found.config.name : found.spec.container);
  PrintField("ID", found.config.id.substr(0, 12));
  PrintField("Image", found.config.rootfs_image_name);
  PrintField("Engine", found.spec.engine);
  PrintField("Runtime", found.config.runtime);
  PrintField("Created", found.config.created_time);
  PrintField("Checkpointed", found.config.checkpointed_time);
  if (found.manifest) {
    PrintField("Written by", "stasis " + found.manifest->stasis_version + " on " +
                                 found.manifest->host_arch + ", Linux " +
                                 found.manifest->host_kernel);
  }
  std::string sizes = Bytes(found.archive_bytes) + ", of it memory " + Bytes(found.pages_bytes);
  if (found.rootfs_bytes != 0) sizes += ", root file system " + Bytes(found.rootfs_bytes);
  PrintField("Size", sizes);
  std::string times;
  if (found.frozen) times = "frozen " + Milliseconds(*found.frozen);
  if (found.manifest && found.manifest->total.count() != 0) {
    times += (times.empty() ? "total " : ", total ") + Milliseconds(found.manifest->total);
  }
  PrintField("Time", times);
  if (!found.manifest) return;
  for (const std::string& note : found.manifest->notes) PrintField("Note", note);
}

/// Children below their parents, each process once: a hostile tree may be a ring or name a pid twice.
class TreePrinter {
 public:
  explicit TreePrinter(const Inspection& found) {
    std::set<std::uint32_t> known;
    for (const InspectedProcess& process : found.processes) known.insert(process.pid);
    for (const InspectedProcess& process : found.processes) {
      const bool has_parent = known.contains(process.parent) && process.parent != process.pid;
      (has_parent ? children_[process.parent] : roots_).push_back(&process);
    }
  }

  void Print() {
    std::printf("\n%7s %7s %11s  %s\n", "PID", "THREADS", "MEMORY", "COMMAND");
    for (const InspectedProcess* const process : roots_) PrintBelow(*process, 0);
  }

 private:
  void PrintBelow(const InspectedProcess& process, std::size_t depth) {
    const std::string state = process.state == "alive" ? "" : " (" + process.state + ")";
    const std::string indent(2 * std::min<std::size_t>(depth, 20), ' ');
    std::printf("%7" PRIu32 " %7" PRIu64 " %11s  %s%s%s\n", process.pid, process.threads,
                Bytes(process.saved_bytes).c_str(), indent.c_str(), CommandText(process).c_str(),
                state.c_str());
    const std::vector<const InspectedProcess*> below = std::exchange(children_[process.pid], {});
    for (const InspectedProcess* const child : below) PrintBelow(*child, depth + 1);
  }

  std::vector<const InspectedProcess*> roots_;
  std::map<std::uint32_t, std::vector<const InspectedProcess*>> children_;
};

void PrintFiles(const Inspection& found) {
  std::printf("\n%7s %5s  %-9s %s\n", "PID", "FD", "KIND", "WHAT");
  for (const InspectedProcess& process : found.processes) {
    if (process.folder.empty()) continue;  // a zombie
    std::printf("%7" PRIu32 " %5s  %-9s %s\n", process.pid, "cwd", "folder",
                Printable(process.folder).c_str());
    for (const DescribedFile& file : process.files) {
      std::printf("%7" PRIu32 " %5" PRIu32 "  %-9s %s\n", process.pid, file.fd, file.kind.c_str(),
                  Printable(file.description).c_str());
    }
  }
}

Status Inspect(const Options& options) {
  ASSIGN_OR_RETURN(const auto opened, OpenArchive(options.archive));
  ASSIGN_OR_RETURN(const Inspection found, archive::Inspect(*opened));
  if (options.json) {
    std::printf("%s\n", JsonText(archive::ToJson(found)).c_str());
    return OkStatus();
  }
  PrintDescription(found);
  TreePrinter(found).Print();
  PrintFiles(found);
  return OkStatus();
}

}  // namespace

void AddInspect(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "inspect", "Shows what is in a checkpoint: processes, files, sockets, memory, sizes, times.");
  command
      ->add_option("checkpoint", options->archive,
                   "An archive, a folder with an unpacked one, or a folder of image files")
      ->required();
  command->add_flag("--json", options->json, "The result as JSON");
  command->footer("Example: stasis inspect /var/lib/kubelet/checkpoints/checkpoint-….tar");
  command->callback([options, &exit_code] { exit_code = Report(Inspect(*options)); });
}

}  // namespace stasis::cli
