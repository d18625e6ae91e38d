#include "archive/checkpoint_image.h"

#include <sys/utsname.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <span>

#include "archive/json_fields.h"
#include "archive/members.h"
#include "archive/sha256.h"

namespace stasis::archive {
namespace {

using nlohmann::json;

constexpr char kCommon[] = "org.criu.checkpoint.";
constexpr char kCrio[] = "io.kubernetes.cri-o.annotations.checkpoint.";

/// Go's name of an architecture, as image configs have it.
std::string GoArch(const std::string& machine) {
  if (machine == "x86_64") return "amd64";
  if (machine == "aarch64") return "arm64";
  return machine;
}

std::string MachineOf(const Archive& archive) {
  if (const Result<Manifest> manifest = ReadManifest(archive);
      manifest.ok() && !manifest->host_arch.empty()) {
    return manifest->host_arch;
  }
  struct utsname host = {};  // other runtimes' archives do not say
  return ::uname(&host) == 0 ? host.machine : "x86_64";
}

json Descriptor(std::string_view media_type, const std::string& digest, std::uint64_t size) {
  return {{"mediaType", media_type}, {"digest", digest}, {"size", size}};
}

json ImageConfig(const std::map<std::string, std::string>& labels, const std::string& machine,
                 const std::string& created, const std::string& diff_id) {
  return {
      {"created", created},
      {"architecture", GoArch(machine)},
      {"os", "linux"},
      {"config", {{"Labels", labels}}},
      {"rootfs", {{"type", "layers"}, {"diff_ids", json::array({diff_id})}}},
      {"history", json::array({json{{"created", created}, {"created_by", "stasis image"}}})},
  };
}

Result<std::string> DiffId(const Archive& archive, const std::stop_token& stop) {
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  const auto piece = std::make_unique_for_overwrite<std::byte[]>(kPiece);
  Sha256 hash;
  for (std::uint64_t offset = 0; offset < archive.tar_size();) {
    const std::span part(piece.get(), std::min(archive.tar_size() - offset, kPiece));
    if (stop.stop_requested()) return Cancelled("nobody waits for the image any more");
    RETURN_IF_ERROR(archive.ReadTar(part, offset));
    hash.Update(part);
    offset += part.size();
  }
  return "sha256:" + hash.Finish();
}

}  // namespace

Result<std::map<std::string, std::string>> ImageAnnotations(const Archive& archive) {
  ASSIGN_OR_RETURN(const std::string config_json, archive.Get(kConfigDumpName));
  ASSIGN_OR_RETURN(const ConfigDump config, ConfigDumpFromJson(config_json));
  ASSIGN_OR_RETURN(const std::string spec_json, archive.Get(kSpecDumpName));
  ASSIGN_OR_RETURN(const SpecSummary spec, SummarizeSpec(spec_json));

  std::map<std::string, std::string> annotations;
  const auto put = [&](const std::string& key, const std::string& value) {
    if (!value.empty()) annotations[key] = value;
  };
  const std::string container = spec.container.empty() ? config.name : spec.container;
  if (container.empty()) {
    return InvalidArgument(archive.name() +
                           ": neither config.dump nor spec.dump names a container");
  }
  const std::string& ref = config.rootfs_image_ref;
  const std::size_t digest = ref.find("sha256:");
  put(kCommon + std::string("engine.name"), spec.engine);
  put(kCommon + std::string("container.name"), container);
  put(kCommon + std::string("pod.name"), spec.pod);
  put(kCommon + std::string("pod.namespace"), spec.pod_namespace);
  put(kCommon + std::string("pod.uid"), spec.pod_uid);
  put(kCommon + std::string("pod.id"), spec.sandbox_id);
  put(kCommon + std::string("rootfsImageUserRequested"), config.rootfs_image);
  put(kCommon + std::string("rootfsImageName"), config.rootfs_image_name);
  put(kCommon + std::string("rootfsImageID"), ref);
  put(kCommon + std::string("rootfsImageSha"),
      digest == std::string::npos ? "" : ref.substr(digest));
  put(kCommon + std::string("runtime.name"), config.runtime);
  if (const Result<Manifest> manifest = ReadManifest(archive); manifest.ok()) {
    put(kCommon + std::string("host.arch"), manifest->host_arch);
    put(kCommon + std::string("host.kernel"), manifest->host_kernel);
  }
  put(kCrio + std::string("name"), container);
  put(kCrio + std::string("rootfsImageName"), config.rootfs_image_name);
  put(kCrio + std::string("rootfsImageID"), ref);
  return annotations;
}

Result<CheckpointImage> DescribeImage(const Archive& archive, const ProgressCall& progress,
                                      const std::stop_token& stop) {
  if (archive.file_fd() < 0) {
    return FailedPrecondition(archive.name() +
                              " is an unpacked folder; an image needs the archive as a file");
  }
  ASSIGN_OR_RETURN(const auto annotations, ImageAnnotations(archive));
  ASSIGN_OR_RETURN(const std::string config_dump, archive.Get(kConfigDumpName));
  ASSIGN_OR_RETURN(const ConfigDump checkpoint, ConfigDumpFromJson(config_dump));
  // The same archive makes the same image, to the byte: its time is the checkpoint's, not ours.
  const std::string created =
      checkpoint.checkpointed_time.empty() ? std::string(kNoTime) : checkpoint.checkpointed_time;

  CheckpointImage image;
  image.layer_size = archive.file_size();
  ASSIGN_OR_RETURN(const std::string digest,
                   Sha256Of(archive.file_fd(), 0, image.layer_size, progress, stop));
  image.layer_digest = "sha256:" + digest;
  // Of what a runtime unpacks it to: OCI image-spec, "Layer DiffID".
  std::string diff_id = image.layer_digest;
  if (archive.compressed()) {
    ASSIGN_OR_RETURN(diff_id, DiffId(archive, stop));
  }
  image.config = Dump(ImageConfig(annotations, MachineOf(archive), created, diff_id));
  image.config_digest = "sha256:" + Sha256Of(image.config);
  image.manifest = Dump(json{
      {"schemaVersion", 2},
      {"mediaType", kManifestMediaType},
      {"config", Descriptor(kConfigMediaType, image.config_digest, image.config.size())},
      {"layers",
       json::array({Descriptor(archive.compressed() ? kZstdLayerMediaType : kLayerMediaType,
                               image.layer_digest, image.layer_size)})},
      {"annotations", annotations},
  });
  image.manifest_digest = "sha256:" + Sha256Of(image.manifest);
  return image;
}

}  // namespace stasis::archive
