// stasis checkpoint: a running tree of processes becomes an archive or a folder of images.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "archive/archive_writer.h"
#include "archive/members.h"
#include "cmd/stasis/commands.h"
#include "engine/base/io.h"
#include "engine/dump.h"
#include "engine/image/image_io.h"

namespace stasis::cli {
namespace {

using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::steady_clock;

struct Options {
  pid_t pid = 0;
  std::string output, images_dir;
  bool run = false, stop = false, kill = false, json = false;
};

engine::Fate FateOf(const Options& options) {
  if (options.kill) return engine::Fate::kKill;
  return options.stop ? engine::Fate::kLeaveStopped : engine::Fate::kLeaveRunning;
}

// What is known of a tree that no runtime started, for tools that want a container's description.
Status AddDescription(archive::ArchiveWriter& writer, pid_t pid) {
  const std::string proc = "/proc/" + std::to_string(pid);
  archive::PlainSpec spec;
  ASSIGN_OR_RETURN(const std::string command, ReadFileAt(AT_FDCWD, proc + "/cmdline"));
  for (std::size_t at = 0; at < command.size(); at = command.find('\0', at) + 1) {
    spec.args.emplace_back(command.c_str() + at);
    if (command.find('\0', at) == std::string::npos) break;
  }
  ASSIGN_OR_RETURN(spec.cwd, ReadLinkAt(AT_FDCWD, proc + "/cwd"));
  RETURN_IF_ERROR(writer.AddMember(archive::kSpecDumpName, archive::PlainSpecToJson(spec)));
  archive::ConfigDump config;
  config.id = std::to_string(pid);
  config.name =
      spec.args.empty() ? config.id : std::filesystem::path(spec.args[0]).filename().string();
  config.created_time = archive::kNoTime;
  config.checkpointed_time = archive::Rfc3339(std::chrono::system_clock::now());
  return writer.AddMember(archive::kConfigDumpName, archive::ConfigDumpToJson(config));
}

void Print(const Options& options, const engine::DumpReport& report, microseconds total) {
  if (options.json) {
    const nlohmann::json json = {
        {"pid", options.pid},
        {"output", options.output.empty() ? options.images_dir : options.output},
        {"processes", report.processes},
        {"threads", report.threads},
        {"pages_written", report.pages_written},
        {"frozen_us", report.frozen.count()},
        {"total_us", total.count()},
        {"notes", report.notes}};
    std::printf("%s\n", json.dump(2).c_str());
    return;
  }
  std::printf(
      "checkpointed %llu processes, %llu threads, %s of memory; frozen %.1f ms of %.1f ms\n",
      static_cast<unsigned long long>(report.processes),
      static_cast<unsigned long long>(report.threads), Bytes(report.pages_written * 4096).c_str(),
      static_cast<double>(report.frozen.count()) / 1000, static_cast<double>(total.count()) / 1000);
  for (const std::string& note : report.notes) std::printf("note: %s\n", note.c_str());
}

Status ToFolder(const Options& options, engine::DumpRequest& request) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::ImageSink> sink,
                   engine::OpenDirectorySink(options.images_dir));
  const Result<engine::DumpReport> report = engine::Dump(request, *sink);
  if (!report.ok()) {
    // The folder was empty before: what is there is ours, and no checkpoint.
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(options.images_dir, error)) {
      std::filesystem::remove(entry.path(), error);
    }
    return report.status();
  }
  Print(options, *report, duration_cast<microseconds>(steady_clock::now() - begin));
  return OkStatus();
}

Status ToArchive(const Options& options, engine::DumpRequest& request) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const std::unique_ptr<archive::ArchiveWriter> writer,
                   archive::ArchiveWriter::Create(std::filesystem::absolute(options.output)));
  RETURN_IF_ERROR(AddDescription(*writer, options.pid));
  const auto total = [&] { return duration_cast<microseconds>(steady_clock::now() - begin); };
  // Durable before the tree is killed or left stopped.
  request.commit = [&](const engine::DumpReport& report) -> Status {
    RETURN_IF_ERROR(writer->AddMember(archive::kStatsDumpName, report.StatsImage()));
    return writer->Commit({.frozen = report.frozen, .total = total()}, report.notes);
  };
  ASSIGN_OR_RETURN(const engine::DumpReport report, engine::Dump(request, writer->images()));
  Print(options, report, total());
  return OkStatus();
}

Status Checkpoint(const Options& options) {
  Progress progress("memory");
  engine::DumpRequest request;
  request.root = options.pid;
  request.fate = FateOf(options);
  request.progress = std::ref(progress);
  return options.output.empty() ? ToFolder(options, request) : ToArchive(options, request);
}

}  // namespace

void AddCheckpoint(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "checkpoint", "Saves a running tree of processes; it runs on unless told otherwise.");
  command->add_option("--pid", options->pid, "Root of the tree")->required();
  CLI::Option_group* where = command->add_option_group("where", "Where the checkpoint goes");
  where->add_option("--output", options->output, "A new archive file (tar)");
  where->add_option("--images-dir", options->images_dir,
                    "An empty folder, for image files as CRIU's tools read them");
  where->require_option(1);
  CLI::Option* running =
      command->add_flag("--leave-running", options->run, "The tree runs on (the default)");
  CLI::Option* stopped =
      command->add_flag("--leave-stopped", options->stop, "The tree is left stopped (SIGSTOP)");
  CLI::Option* killed = command->add_flag("--kill", options->kill, "The tree is ended (SIGKILL)");
  stopped->excludes(running)->excludes(killed);
  killed->excludes(running);
  command->add_flag("--json", options->json, "The result as JSON");
  command->footer("Example: stasis checkpoint --pid 1234 --output /var/tmp/redis.tar");
  command->callback([options, &exit_code] { exit_code = Report(Checkpoint(*options)); });
}

}  // namespace stasis::cli
