// The JSON members of an archive, with the field names that the runtimes and checkpointctl read.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::archive {

inline constexpr std::string_view kConfigDumpName = "config.dump";
inline constexpr std::string_view kSpecDumpName = "spec.dump";
/// Podman's name for what is in /dev/shm.
inline constexpr std::string_view kSharedMemoryName = "devshm-checkpoint.tar";
inline constexpr std::string_view kStatusDumpName = "status.dump";
inline constexpr std::string_view kContainerdStatusName = "status";
inline constexpr std::string_view kBindMountsName = "bind.mounts";
inline constexpr std::string_view kStatsDumpName = "stats-dump";
inline constexpr std::string_view kDumpLogName = "dump.log";
inline constexpr std::string_view kContainerdLogName = "container.log";
inline constexpr std::string_view kCrioLogName = "io.kubernetes.cri-o.LogPath";

/// Go's zero time, which readers expect where there is none.
inline constexpr std::string_view kNoTime = "0001-01-01T00:00:00Z";

/// "2026-11-23T11:11:56.432682074Z".
std::string Rfc3339(std::chrono::system_clock::time_point time);

/// config.dump: what was checkpointed. Empty optional texts are left out.
struct ConfigDump {
  std::string id;                 ///< 64 hexadecimal digits.
  std::string name;               ///< As the runtime calls it: "counter_p1_default_UID_0".
  std::string rootfs_image;       ///< What the user asked for.
  std::string rootfs_image_ref;   ///< containerd: "name@sha256:…"; CRI-O: the image's 64 digits.
  std::string rootfs_image_name;  ///< Shown as "Image" by checkpointctl.
  std::string runtime;            ///< "runc", "io.containerd.runc.v2".
  std::string created_time;       ///< RFC 3339, like the next.
  std::string checkpointed_time;
  bool restored = false;  ///< It came from a checkpoint itself.
};
std::string ConfigDumpToJson(const ConfigDump& config);
/// InvalidArgument: not a JSON object. Fields that are missing stay empty.
Result<ConfigDump> ConfigDumpFromJson(std::string_view json);

/// status.dump: CRI's ContainerStatus as Go's encoding/json writes the generated struct.
struct StatusDump {
  std::string id;
  std::string name;
  std::uint32_t attempt = 0;
  std::int32_t state = 1;       ///< CONTAINER_RUNNING.
  std::int64_t created_at = 0;  ///< Unix nanoseconds, like the next.
  std::int64_t started_at = 0;
  std::string image;
  std::string user_specified_image;
  std::string image_ref;
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> annotations;
  std::string log_path;
};
std::string StatusDumpToJson(const StatusDump& status);

/// status: containerd's own file, which checkpointctl reads.
struct ContainerdStatus {
  std::uint32_t pid = 0;
  std::int64_t created_at = 0;  ///< Unix nanoseconds, like the next.
  std::int64_t started_at = 0;
};
std::string ContainerdStatusToJson(const ContainerdStatus& status);

/// bind.mounts: one for each mount that a restore needs from outside. To be written when there are
/// any.
struct BindMount {
  std::string source;
  std::string destination;
  bool is_directory = true;
  unsigned permissions = 0755;
};
std::string BindMountsToJson(const std::vector<BindMount>& mounts);

/// spec.dump of a tree that no runtime started: a minimal OCI runtime-spec object.
struct PlainSpec {
  std::vector<std::string> args;
  std::string cwd;
  std::string hostname;
};
std::string PlainSpecToJson(const PlainSpec& spec);

/// What spec.dump tells about the engine and the pod, whoever wrote it.
struct SpecSummary {
  std::string engine;  ///< "containerd", "CRI-O" or "Podman"; empty for a plain tree.
  std::string pod;
  std::string pod_namespace;
  std::string pod_uid;
  std::string sandbox_id;
  std::string container;
  std::string image;
};
Result<SpecSummary> SummarizeSpec(std::string_view spec_json);

}  // namespace stasis::archive
