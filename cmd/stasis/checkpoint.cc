// stasis checkpoint: a running tree of processes, or a container, becomes an archive or a folder of
// images.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "archive/archive_writer.h"
#include "archive/members.h"
#include "cmd/stasis/commands.h"
#include "cmd/stasis/engine_options.h"
#include "cmd/stasis/interrupts.h"
#include "cmd/stasis/log_file.h"
#include "cri/checkpoint/container_checkpoint.h"
#include "cri/checkpoint/free_space.h"
#include "cri/checkpoint/tmpfs_mounts.h"
#include "cri/client.h"
#include "engine/base/io.h"
#include "engine/dump.h"
#include "engine/dump_watch.h"
#include "engine/image/pending_images.h"
#include "engine/mounts/mounts_here.h"

namespace stasis::cli {
namespace {

using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::steady_clock;

constexpr std::int64_t kLongestTimeoutSeconds = 365L * 24 * 3600;

struct Options {
  pid_t pid = 0;
  std::string container, runtime_endpoint, output, images_dir;
  std::int64_t timeout_seconds = 0;
  engine::Options engine;
  std::optional<archive::Compression> compression;
  int least_free_percent = 5;
  LogFile log;
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

void Print(const Options& options, const engine::DumpReport& report,
           const std::vector<std::string>& notes, microseconds total,
           const std::optional<archive::CompressionReport>& compression = std::nullopt) {
  options.log.Warn(notes);
  const std::uint64_t pages = report.pages().written + report.pages().in_parent;
  if (options.json) {
    nlohmann::json json = {{"pid", options.pid},
                           {"output", options.output.empty() ? options.images_dir : options.output},
                           {"processes", report.processes},
                           {"threads", report.threads},
                           {"pages_written", pages},
                           {"frozen_us", report.stops.total.count()},
                           {"stops", report.stops.count},
                           {"longest_stop_us", report.stops.longest.count()},
                           {"total_us", total.count()},
                           {"notes", notes}};
    if (!options.container.empty()) json["container"] = options.container;
    if (compression) {
      json["compression"] = {{"plain_bytes", compression->plain_bytes},
                             {"stored_bytes", compression->stored_bytes},
                             {"ratio", compression->ratio()},
                             {"cpu_seconds_per_gb", compression->cpu_seconds_per_gb()}};
    }
    std::printf("%s\n", JsonText(json).c_str());
    return;
  }
  const auto milliseconds = [](microseconds time) {
    return static_cast<double>(time.count()) / 1000;
  };
  std::printf("checkpointed %llu processes, %llu threads, %s of memory; frozen %.1f ms of %.1f ms",
              static_cast<unsigned long long>(report.processes),
              static_cast<unsigned long long>(report.threads), Bytes(pages * 4096).c_str(),
              milliseconds(report.stops.total), milliseconds(total));
  if (report.stops.count > 1) {
    std::printf(", in %llu stops of at most %.1f ms",
                static_cast<unsigned long long>(report.stops.count),
                milliseconds(report.stops.longest));
  }
  std::printf("\n");
  if (compression) {
    std::printf("compressed %s to %s (%.2f to 1) for %.2f s of processor time a GB\n",
                Bytes(compression->plain_bytes).c_str(), Bytes(compression->stored_bytes).c_str(),
                compression->ratio(), compression->cpu_seconds_per_gb());
  }
  for (const std::string& note : notes) std::printf("note: %s\n", OneLine(note).c_str());
}

// What a tree on the host has mounted in a mount namespace of its own comes back with what is in it.
void KeepOwnMounts(engine::DumpRequest& request, engine::ImageSink& images) {
  const auto changes = std::make_shared<engine::MountChanges>();
  request.compare_mounts =
      [changes, &request](std::span<const engine::Mount> mounts) -> Result<engine::MountChanges> {
    ASSIGN_OR_RETURN(*changes,
                     engine::CompareWithHere(mounts, request.root, request.options.external));
    return *changes;
  };
  request.while_frozen = [changes, pid = request.root, &images](std::span<const pid_t> others) {
    return cri::WriteTmpfsMadeInside(pid, others, *changes, images);
  };
}

Status ToFolder(const Options& options, engine::DumpRequest& request) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const auto images, engine::PendingImages::Create(options.images_dir));
  if (options.container.empty()) KeepOwnMounts(request, *images);
  // Durable before the tree is killed or left stopped.
  request.commit = [&](const engine::DumpReport& report) -> Status {
    RETURN_IF_ERROR(images->Put(archive::kStatsDumpName, report.StatsImage()));
    return images->Publish();
  };
  ASSIGN_OR_RETURN(const engine::DumpReport report, engine::Dump(request, *images));
  Print(options, report, report.notes, duration_cast<microseconds>(steady_clock::now() - begin));
  return OkStatus();
}

Status ToArchive(const Options& options, engine::DumpRequest& request) {
  const auto begin = steady_clock::now();
  const std::filesystem::path location = std::filesystem::absolute(options.output);
  cri::FreeSpace space(location.parent_path(), options.least_free_percent);
  RETURN_IF_ERROR(space.Check());
  ASSIGN_OR_RETURN(const std::unique_ptr<archive::ArchiveWriter> writer,
                   archive::ArchiveWriter::Create(location, options.compression));
  cri::HurryWhileStopped(request, *writer);
  writer->StopUnless([&request] { return engine::StillWanted(request); });
  const Status described = AddDescription(*writer, options.pid);
  if (described.code() == StatusCode::kNotFound) {
    return NotFound("there is no process " + std::to_string(options.pid));
  }
  RETURN_IF_ERROR(described);
  KeepOwnMounts(request, writer->images());
  const auto total = [&] { return duration_cast<microseconds>(steady_clock::now() - begin); };
  // Durable before the tree is killed or left stopped.
  request.commit = [&](const engine::DumpReport& report) -> Status {
    RETURN_IF_ERROR(writer->AddMember(archive::kStatsDumpName, report.StatsImage()));
    return writer->Commit({.frozen = report.stops.total, .total = total()}, report.notes);
  };
  cri::SpaceKeepingSink images(writer->images(), space);
  ASSIGN_OR_RETURN(const engine::DumpReport report, engine::Dump(request, images));
  Print(options, report, report.notes, total(), writer->compression_report());
  return OkStatus();
}

Status CheckpointContainer(Options& options, engine::DumpRequest& request) {
  if (options.runtime_endpoint.empty()) {
    ASSIGN_OR_RETURN(options.runtime_endpoint, cri::UsualEndpoint());
  }
  ASSIGN_OR_RETURN(
      const cri::ContainerFacts facts,
      cri::DescribeRunningAt(options.runtime_endpoint, options.container, request.stop));
  options.container = facts.status.id();
  options.pid = request.root = facts.pid;
  if (options.output.empty()) return ToFolder(options, request);
  request.options.own_namespaces = false;  // as in the runtime's call: it makes them for a restore
  ASSIGN_OR_RETURN(
      const cri::ContainerCheckpoint done,
      cri::WriteArchive(
          facts, std::filesystem::absolute(options.output), std::move(request),
          {.compression = options.compression, .least_free_percent = options.least_free_percent}));
  Print(options, done.report, done.notes, done.total, done.compression);
  return OkStatus();
}

// A folder of images is one descriptor a file until all are whole: a soft limit of 1024 is soon used
// up.
void RaiseDescriptorLimit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);  // with the lower one smaller trees can still be saved
}

int Checkpoint(Options& options) {
  RaiseDescriptorLimit();
  Interrupts interrupts;
  Status status = options.log.Open(options.images_dir);
  if (status.ok()) {
    Progress progress("memory");
    engine::DumpRequest request;
    request.root = options.pid;
    request.options = options.engine;
    request.options.own_namespaces = true;
    request.log = options.log.Hear();
    request.fate = FateOf(options);
    request.stop = interrupts.token();
    if (options.timeout_seconds > 0) {
      request.deadline = steady_clock::now() + std::chrono::seconds(options.timeout_seconds);
    }
    request.progress = std::ref(progress);
    if (!options.container.empty()) {
      status = CheckpointContainer(options, request);
    } else {
      status = options.output.empty() ? ToFolder(options, request) : ToArchive(options, request);
    }
  }
  options.log.End(status, "checkpointed");
  const int code = Report(status);
  return status.code() == StatusCode::kCancelled && interrupts.caught() != 0
             ? kSignalBase + interrupts.caught()
             : code;
}

}  // namespace

void AddCheckpoint(CLI::App& program, int& exit_code) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "checkpoint", "Saves a running tree of processes; it runs on unless told otherwise.");
  CLI::Option_group* what = command->add_option_group("what", "What is saved");
  what->add_option("--pid,--tree,-t", options->pid, "Root of a tree of processes")
      ->check(CLI::Range(pid_t{1}, std::numeric_limits<pid_t>::max()));
  what->add_option("--container", options->container,
                   "Id of a running container, or an unambiguous beginning of it")
      ->check(NotEmpty());
  what->require_option(1);
  CLI::Option_group* where = command->add_option_group("where", "Where the checkpoint goes");
  where
      ->add_option("--output", options->output,
                   "A new archive file (tar); of a container with all that a restore in another "
                   "pod needs")
      ->check(NotEmpty());
  CLI::Option* folder =
      where
          ->add_option(
              "--images-dir,-D", options->images_dir,
              "A folder without any, for image files as CRIU's tools read them: the processes "
              "alone")
          ->check(NotEmpty());
  where->require_option(1);
  command
      ->add_option_function<std::string>(
          "--compress",
          [options](const std::string& text) {
            options->compression = *archive::ParseCompression(text);
          },
          "Compression of the archive: none (the default), or zstd[:LEVEL] with a level from 1 to "
          "19 (3); it is restored without being unpacked")
      ->option_text("zstd[:LEVEL]")
      ->check(
          [](const std::string& text) { return Message(archive::ParseCompression(text).status()); })
      ->excludes(folder);
  command
      ->add_option("--checkpoint-min-free", options->least_free_percent,
                   "Percent of the disk of --output that stay free")
      ->check(CLI::Range(0, 99))
      ->envname("STASIS_CHECKPOINT_MIN_FREE")
      ->capture_default_str();
  CLI::Option* running =
      command->add_flag("--leave-running,-R", options->run, "The tree runs on (the default)");
  CLI::Option* stopped =
      command->add_flag("--leave-stopped,-s", options->stop, "The tree is left stopped (SIGSTOP)");
  CLI::Option* killed = command->add_flag("--kill", options->kill, "The tree is ended (SIGKILL)");
  stopped->excludes(running)->excludes(killed);
  killed->excludes(running);
  command
      ->add_option("--runtime-endpoint", options->runtime_endpoint,
                   "The CRI socket that is asked for --container; without it the first that "
                   "answers of /run/stasis/stasis.sock, /run/containerd/containerd.sock and "
                   "/run/crio/crio.sock")
      ->envname("CONTAINER_RUNTIME_ENDPOINT");
  command->add_flag_callback(
      "--no-pre-copy", [options] { options->engine.pre_copy = false; },
      "All memory is saved while the tree stands still, none in parent/");
  command
      ->add_option("--timeout", options->timeout_seconds,
                   "Seconds after which it is given up; 0: none")
      ->check(CLI::Range(std::int64_t{0}, kLongestTimeoutSeconds))
      ->capture_default_str();
  command->add_flag("--json", options->json, "The result as JSON");
  AddEngineOptions(*command, options->engine);
  options->log.AddOptions(*command);
  command->footer(
      "Whatever goes wrong, the processes run on as they were and nothing half-made is left.\n"
      "Examples: stasis checkpoint --pid 1234 --output /var/tmp/redis.tar\n"
      "          stasis checkpoint --container 3f1c0a --output /var/tmp/redis.tar --kill");
  command->callback([options, &exit_code] { exit_code = Checkpoint(*options); });
}

}  // namespace stasis::cli
