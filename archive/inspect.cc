#include "archive/inspect.h"

#include <algorithm>

#include "archive/member_name.h"
#include "archive/process_memory.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/inventory.pb.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/image/schema/tasks.pb.h"

namespace stasis::archive {
namespace {

constexpr std::uint64_t kMaxCommandLine = std::uint64_t{64} << 10;
constexpr std::uint32_t kZombie = 2;  // CRIU's TASK_DEAD and TASK_STOPPED
constexpr std::uint32_t kStopped = 3;

std::string StateText(std::uint32_t state) {
  if (state == kZombie) return "zombie";
  return state == kStopped ? "stopped" : "alive";
}

std::vector<std::string> SplitArguments(const std::string& bytes) {
  std::vector<std::string> arguments;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t end = std::min(bytes.find('\0', at), bytes.size());
    arguments.push_back(bytes.substr(at, end - at));
    at = end + 1;
  }
  return arguments;
}

Status ReadMemory(const engine::ImageSource& images, const OpenFiles& files,
                  InspectedProcess& process) {
  ASSIGN_OR_RETURN(const auto mm, engine::ReadOne<image::MmEntry>(
                                      images, engine::ImageName("mm", process.pid), "mm"));
  for (const image::VmaEntry& vma : mm.vmas()) {
    if (vma.end() > vma.start()) process.mapped_bytes += vma.end() - vma.start();
  }
  process.executable = files.PathOf(mm.exe_file_id());
  const Result<ProcessMemory> memory = ProcessMemory::Open(images, process.pid);
  if (memory.status().code() == StatusCode::kNotFound) return OkStatus();
  RETURN_IF_ERROR(memory.status());
  process.saved_bytes = memory->saved_bytes();
  if (mm.mm_arg_end() <= mm.mm_arg_start()) return OkStatus();
  ASSIGN_OR_RETURN(const std::string bytes,
                   memory->Read(mm.mm_arg_start(),
                                std::min(mm.mm_arg_end() - mm.mm_arg_start(), kMaxCommandLine)));
  process.command = SplitArguments(bytes);
  return OkStatus();
}

Result<InspectedProcess> ReadProcess(const engine::ImageSource& images, const OpenFiles& files,
                                     const image::PstreeEntry& entry) {
  InspectedProcess process;
  process.pid = entry.pid();
  process.parent = entry.ppid();
  process.group = entry.pgid();
  process.session = entry.sid();
  process.threads = static_cast<std::uint64_t>(entry.threads_size());
  ASSIGN_OR_RETURN(const auto core, engine::ReadOne<image::CoreEntry>(
                                        images, engine::ImageName("core", entry.pid()), "core"));
  process.name = core.tc().comm();
  process.state = StateText(core.tc().task_state());
  if (core.tc().task_state() == kZombie) return process;

  RETURN_IF_ERROR(ReadMemory(images, files, process));
  ASSIGN_OR_RETURN(const auto ids, engine::ReadOne<image::TaskKobjIdsEntry>(
                                       images, engine::ImageName("ids", entry.pid()), "ids"));
  ASSIGN_OR_RETURN(process.files, files.OfTable(ids.files_id()));
  ASSIGN_OR_RETURN(const auto fs, engine::ReadOne<image::FsEntry>(
                                      images, engine::ImageName("fs", entry.pid()), "fs"));
  process.folder = files.PathOf(fs.cwd_id());
  return process;
}

Status ReadProcesses(const engine::ImageSource& images, Inspection& inspection) {
  ASSIGN_OR_RETURN(const OpenFiles files, OpenFiles::Read(images));
  ASSIGN_OR_RETURN(const auto tree,
                   engine::ReadRecords<image::PstreeEntry>(images, "pstree.img", "pstree"));
  for (const image::PstreeEntry& entry : tree) {
    Result<InspectedProcess> process = ReadProcess(images, files, entry);
    if (!process.ok()) {
      return Annotate(process.status(), "pid " + std::to_string(entry.pid()));
    }
    inspection.processes.push_back(*std::move(process));
  }
  return OkStatus();
}

Status ReadStats(const engine::ImageSource& members, Inspection& inspection) {
  const Result<image::StatsEntry> stats =
      engine::ReadOne<image::StatsEntry>(members, kStatsDumpName, kStatsDumpName);
  if (stats.status().code() == StatusCode::kNotFound) return OkStatus();
  RETURN_IF_ERROR(stats.status());
  inspection.freezing = std::chrono::microseconds(stats->dump().freezing_time());
  inspection.frozen = std::chrono::microseconds(stats->dump().frozen_time());
  inspection.pages_written = stats->dump().pages_written() + stats->dump().shpages_written();
  return OkStatus();
}

Status AddSizes(const engine::ImageSource& members, const engine::ImageSource& images,
                Inspection& inspection) {
  for (const std::string& name : members.Names()) {
    ASSIGN_OR_RETURN(const std::uint64_t size, members.Size(name));
    inspection.archive_bytes += size;
    if (name == "rootfs-diff.tar") inspection.rootfs_bytes = size;
  }
  for (const std::string& name : images.Names()) {
    ASSIGN_OR_RETURN(const std::uint64_t size, images.Size(name));
    inspection.images_bytes += size;
    if (name.starts_with("pages-")) inspection.pages_bytes += size;
  }
  return OkStatus();
}

Status ReadDescription(const Archive& archive, Inspection& inspection) {
  if (archive.Has(kConfigDumpName)) {
    ASSIGN_OR_RETURN(const std::string json, archive.Get(kConfigDumpName));
    ASSIGN_OR_RETURN(inspection.config, ConfigDumpFromJson(json));
  }
  if (archive.Has(kSpecDumpName)) {
    ASSIGN_OR_RETURN(const std::string json, archive.Get(kSpecDumpName));
    ASSIGN_OR_RETURN(inspection.spec, SummarizeSpec(json));
  }
  if (archive.Has(kManifestName)) {
    ASSIGN_OR_RETURN(inspection.manifest, ReadManifest(archive));
  }
  return OkStatus();
}

}  // namespace

Result<Inspection> Inspect(const Archive& archive) {
  Inspection inspection;
  inspection.source = archive.name();
  // A plain folder of images has at its top what an archive has below "checkpoint/".
  const bool plain = archive.Has("inventory.img") && !archive.Has("checkpoint/inventory.img");
  const engine::ImageSource& images = plain ? archive.members() : archive.images();
  if (!images.Size("inventory.img").ok()) {
    return InvalidArgument(archive.name() + " holds no checkpoint: it has no inventory.img");
  }
  RETURN_IF_ERROR(ReadDescription(archive, inspection));
  RETURN_IF_ERROR(ReadStats(archive.members(), inspection));
  RETURN_IF_ERROR(AddSizes(archive.members(), images, inspection));
  RETURN_IF_ERROR(ReadProcesses(images, inspection));
  return inspection;
}

}  // namespace stasis::archive
