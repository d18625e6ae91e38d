#include "cri/checkpoint/members.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <span>
#include <utility>

#include "archive/json_fields.h"
#include "archive/members.h"
#include "archive/rootfs_diff.h"
#include "cri/restore/placeholder.h"
#include "cri/restore/records.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

using nlohmann::json;
using runtime::v1::ContainerStatus;

constexpr std::uint64_t kPieceBytes = std::uint64_t{256} << 10;

// Where a bind.mounts entry is never needed: the runtime makes these itself.
constexpr const char* kOwnMounts[] = {
    "/dev", "/dev/shm", "/proc", "/run", "/run/.containerenv", "/run/secrets", "/sys"};

std::string TimeText(std::int64_t nanoseconds) {
  return archive::Rfc3339(std::chrono::system_clock::time_point(
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::nanoseconds(nanoseconds))));
}

std::string Label(const ContainerStatus& status, const char* key) {
  const auto label = status.labels().find(key);
  return label == status.labels().end() ? "" : label->second;
}

// CRI-O's runtime type is not told; containerd's is "io.containerd.…".
bool IsContainerd(const ContainerFacts& facts) { return !facts.runtime_type.empty(); }

std::string ConfigDump(const ContainerFacts& facts, bool restored) {
  const ContainerStatus& status = facts.status;
  const std::string attempt = std::to_string(status.metadata().attempt());
  std::string ref = status.image_ref();
  if (!IsContainerd(facts) && ref.starts_with("sha256:")) ref = ref.substr(7);
  return archive::ConfigDumpToJson({
      .id = status.id(),
      .name = status.metadata().name() + "_" + Label(status, "io.kubernetes.pod.name") + "_" +
              Label(status, "io.kubernetes.pod.namespace") + "_" +
              Label(status, "io.kubernetes.pod.uid") + "_" + attempt,
      .rootfs_image = status.image().image(),
      .rootfs_image_ref = ref,
      .rootfs_image_name = status.image().image(),
      .runtime = IsContainerd(facts) ? facts.runtime_type : "runc",
      .created_time = TimeText(status.created_at()),
      .checkpointed_time = archive::Rfc3339(std::chrono::system_clock::now()),
      .restored = restored,
  });
}

std::string StatusDump(const ContainerStatus& status) {
  return archive::StatusDumpToJson({
      .id = status.id(),
      .name = status.metadata().name(),
      .attempt = status.metadata().attempt(),
      .state = status.state(),
      .created_at = status.created_at(),
      .started_at = status.started_at(),
      .image = status.image().image(),
      .user_specified_image = status.image().user_specified_image(),
      .image_ref = status.image_ref(),
      .labels = {status.labels().begin(), status.labels().end()},
      .annotations = {status.annotations().begin(), status.annotations().end()},
      .log_path = status.log_path(),
  });
}

/// The spec without what we added to it when the container was restored itself. True: it was.
bool DropPlaceholder(json& spec) {
  if (!spec.is_object() || !spec["mounts"].is_array()) return false;
  json& mounts = spec["mounts"];
  const auto ours = std::find_if(mounts.begin(), mounts.end(), [](const json& mount) {
    return archive::TextField(mount, "destination") == kPlaceholderPath;
  });
  if (ours == mounts.end()) return false;
  mounts.erase(ours);
  return true;
}

std::vector<archive::BindMount> BindMounts(const json& spec) {
  std::vector<archive::BindMount> binds;
  for (const json& mount : archive::ArrayField(spec, "mounts")) {
    const std::string destination = archive::TextField(mount, "destination");
    const std::string source = archive::TextField(mount, "source");
    const bool own = std::find(std::begin(kOwnMounts), std::end(kOwnMounts), destination) !=
                     std::end(kOwnMounts);
    struct stat status{};
    if (own || archive::TextField(mount, "type") != "bind") continue;
    if (::stat(source.c_str(), &status) != 0) continue;  // gone from the host: nothing to say of it
    binds.push_back({source, destination, S_ISDIR(status.st_mode), status.st_mode & 0777U});
  }
  return binds;
}

std::string DumpLog(const engine::DumpReport& report, const std::vector<std::string>& notes) {
  const auto line = [](const char* what, auto value) {
    return std::string(what) + ": " + std::to_string(value) + "\n";
  };
  std::string text =
      "Dumped by Stasis\n" + line("processes", report.processes) + line("threads", report.threads) +
      line("pages scanned", report.pages().scanned) +
      line("pages written", report.pages().written) + line("image bytes", report.image_bytes) +
      line("freezing, microseconds", report.freezing.count()) +
      line("frozen, microseconds", report.stops.total.count());
  for (const std::string& note : notes) text += "note: " + note + "\n";
  return text;
}

Status AddLog(const ContainerFacts& facts, const LogExtent& log, archive::ArchiveWriter& writer) {
  if (!log.file) return OkStatus();
  ASSIGN_OR_RETURN(
      const auto member,
      writer.OpenMember(IsContainerd(facts) ? archive::kContainerdLogName : archive::kCrioLogName));
  std::vector<std::byte> piece(std::min(log.size_bytes, kPieceBytes));
  for (std::uint64_t offset = 0; offset < log.size_bytes;) {
    const auto part = std::span(piece).first(std::min(log.size_bytes - offset, kPieceBytes));
    RETURN_IF_ERROR(Annotate(ReadExactAt(log.file.get(), part, offset), "the container's log"));
    RETURN_IF_ERROR(member->Write(part));
    offset += part.size();
  }
  return member->Finish();
}

}  // namespace

LogExtent OpenContainerLog(const ContainerFacts& facts) {
  if (facts.status.log_path().empty()) return {};
  // A link here would be somebody's trap: it would put a file of the host into the archive.
  Result<UniqueFd> log =
      OpenAt(AT_FDCWD, facts.status.log_path(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  struct stat status{};
  if (!log.ok() || ::fstat(log->get(), &status) != 0 || !S_ISREG(status.st_mode)) return {};
  return {std::move(*log), 0};
}

Status SetExtent(LogExtent& log) {
  if (!log.file) return OkStatus();
  struct stat status{};
  if (::fstat(log.file.get(), &status) != 0) {
    const int error = errno;
    return SyscallError(error, "fstat of the container's log");
  }
  log.size_bytes = static_cast<std::uint64_t>(status.st_size);
  return OkStatus();
}

Status AddMembers(const ContainerFacts& facts, const LogExtent& log,
                  const engine::DumpReport& report, const std::vector<std::string>& notes,
                  archive::ArchiveWriter& writer) {
  json spec = facts.spec;
  const bool restored =
      DropPlaceholder(spec) || facts.restore_phase == PhaseText(RestorePhase::kRestored);
  RETURN_IF_ERROR(writer.AddMember(archive::kConfigDumpName, ConfigDump(facts, restored)));
  RETURN_IF_ERROR(writer.AddMember(archive::kSpecDumpName, archive::Dump(spec)));
  RETURN_IF_ERROR(writer.AddMember(archive::kStatusDumpName, StatusDump(facts.status)));
  RETURN_IF_ERROR(writer.AddMember(
      archive::kContainerdStatusName,
      archive::ContainerdStatusToJson({static_cast<std::uint32_t>(facts.pid),
                                       facts.status.created_at(), facts.status.started_at()})));
  if (const auto binds = BindMounts(spec); !binds.empty()) {
    RETURN_IF_ERROR(writer.AddMember(archive::kBindMountsName, archive::BindMountsToJson(binds)));
  }
  RETURN_IF_ERROR(writer.AddMember(archive::kStatsDumpName, report.StatsImage()));
  RETURN_IF_ERROR(writer.AddMember(archive::kDumpLogName, DumpLog(report, notes)));
  return AddLog(facts, log, writer);
}

}  // namespace stasis::cri
