#include "cri/restore/checkpoint_images.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "archive/json_fields.h"

namespace stasis::cri {
namespace {

namespace images = containerd::services::images::v1;
namespace content = containerd::services::content::v1;
namespace snapshots = containerd::services::snapshots::v1;
namespace leases = containerd::services::leases::v1;
using nlohmann::json;

constexpr std::array<const char*, 2> kMarks = {
    "org.criu.checkpoint.container.name",
    "io.kubernetes.cri-o.annotations.checkpoint.name",
};
constexpr std::size_t kMaxKnownImages = 1024;
constexpr std::size_t kMaxManifestBytes = std::size_t{4} << 20;  // registries take no larger one
constexpr const char* kOwnerLabel = "stasis/checkpoint-view";
const Metadata kNamespace = {
    {"containerd-namespace", "k8s.io"}};  // where containerd's CRI keeps all

bool HasMark(const json& map) {
  return std::any_of(kMarks.begin(), kMarks.end(),
                     [&](const char* mark) { return !archive::Field(map, mark).is_null(); });
}

bool HasMark(const google::protobuf::Map<std::string, std::string>& map) {
  return std::any_of(kMarks.begin(), kMarks.end(),
                     [&](const char* mark) { return map.contains(mark); });
}

bool IsRegularFile(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

// Says nothing about the image: the same question may be answered a moment later.
bool IsPassing(const Status& status) {
  return status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kCancelled ||
         status.code() == StatusCode::kDeadlineExceeded;
}

std::string UniqueName() {
  std::random_device random;
  std::string name = "stasis-";
  for (int i = 0; i < 4; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    for (unsigned bits = random(), j = 0; j < 8; ++j, bits >>= 4) name += kDigits[bits & 15];
  }
  return name;
}

/// Digests of the manifests that an index lists, for all platforms: a mark on any of them counts,
/// as the platform is checked by the restore itself.
std::vector<std::string> ManifestsOf(const json& index) {
  std::vector<std::string> digests;
  for (const json& entry : archive::ArrayField(index, "manifests")) {
    if (digests.size() == 32) break;
    digests.push_back(archive::TextField(entry, "digest"));
  }
  return digests;
}

}  // namespace

Result<std::optional<CheckpointImage>> CheckpointImages::Find(const runtime::v1::ImageSpec& image,
                                                              const CallLimits& limits) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(image.image());
    if (found != known_.end()) return found->second;
  }
  if (image.image().starts_with('/') && IsRegularFile(image.image())) {
    // No pod spec comes here: a kubelet asks for the image first, and a path is none.
    return CheckpointImage{.id = image.image(), .ref = image.image()};
  }
  runtime::v1::ImageStatusRequest request;
  *request.mutable_image() = image;
  request.set_verbose(true);
  const Result<runtime::v1::ImageStatusResponse> answered =
      Call(&runtime::v1::ImageService::Stub::ImageStatus, upstream_.images(), request, limits);
  if (IsPassing(answered.status())) return answered.status();
  if (!answered.ok() || answered->image().id().empty()) return std::optional<CheckpointImage>();
  const runtime::v1::ImageStatusResponse& response = *answered;

  json details;
  if (const auto info = response.info().find("info"); info != response.info().end()) {
    ASSIGN_OR_RETURN(details,
                     archive::ParseObject(info->second, "the verbose status of the image"));
  }
  const json& config = archive::Field(archive::Field(details, "imageSpec"), "config");
  bool is_checkpoint = HasMark(response.image().spec().annotations()) ||
                       HasMark(archive::Field(config, "Labels")) ||
                       HasMark(archive::Field(details, "labels"));
  if (!is_checkpoint) {
    ASSIGN_OR_RETURN(is_checkpoint, ManifestSaysSo(response.image().id(), limits));
  }
  std::optional<CheckpointImage> answer;
  if (is_checkpoint) {
    const auto& digests = response.image().repo_digests();
    answer = CheckpointImage{.id = response.image().id(),
                             .ref = digests.empty() ? response.image().id() : digests[0],
                             .chain_id = archive::TextField(details, "chainID")};
  }
  const std::lock_guard lock(mutex_);
  if (known_.size() >= kMaxKnownImages) known_.clear();
  known_[response.image().id()] = answer;
  return answer;
}

Result<bool> CheckpointImages::ManifestSaysSo(const std::string& image_id,
                                              const CallLimits& limits) {
  images::GetImageRequest request;
  request.set_name(image_id);  // containerd's CRI keeps a record of this name for each image
  Result<images::GetImageResponse> image =
      Call(&images::Images::Stub::Get, upstream_.containerd_images(), request, limits, kNamespace);
  if (image.status().code() == StatusCode::kUnimplemented ||
      image.status().code() == StatusCode::kNotFound) {
    return false;  // not containerd, or not one of its CRI's images
  }
  if (!image.ok()) return image.status();

  std::vector<std::string> digests = {image->image().target().digest()};
  for (std::size_t i = 0; i < digests.size(); ++i) {
    Result<std::string> blob = ReadBlob(digests[i], limits);
    // An index lists the manifests of other platforms too, and those were not pulled.
    if (i > 0 && blob.status().code() == StatusCode::kNotFound) continue;
    if (!blob.ok()) return blob.status();
    ASSIGN_OR_RETURN(const json document, archive::ParseObject(*blob, "manifest " + digests[i]));
    if (HasMark(archive::Field(document, "annotations"))) return true;
    if (i == 0) {
      const std::vector<std::string> children = ManifestsOf(document);
      digests.insert(digests.end(), children.begin(), children.end());
    }
  }
  return false;
}

Result<std::string> CheckpointImages::ReadBlob(const std::string& digest,
                                               const CallLimits& limits) {
  grpc::ClientContext context;
  for (const auto& [key, value] : kNamespace) context.AddMetadata(key, value);
  if (limits.deadline != std::chrono::system_clock::time_point::max()) {
    context.set_deadline(limits.deadline);
  }
  content::ReadContentRequest request;
  request.set_digest(digest);
  const auto reader = upstream_.content().Read(&context, request);
  std::string blob;
  content::ReadContentResponse part;
  while (reader->Read(&part)) {
    blob += part.data();
    if (blob.size() > kMaxManifestBytes) {
      context.TryCancel();
      (void)reader->Finish();  // we cancelled it ourselves
      return ResourceExhausted("the manifest " + digest + " is larger than 4 MiB");
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return Annotate(FromGrpc(status), "read the manifest " + digest);
  return blob;
}

Result<std::string> CheckpointImages::SnapshotterOf(const std::string& sandbox_id,
                                                    const CallLimits& limits) {
  runtime::v1::PodSandboxStatusRequest request;
  request.set_pod_sandbox_id(sandbox_id);
  request.set_verbose(true);
  ASSIGN_OR_RETURN(const runtime::v1::PodSandboxStatusResponse response,
                   Call(&runtime::v1::RuntimeService::Stub::PodSandboxStatus,
                        upstream_.containers(), request, limits));
  const auto info = response.info().find("info");
  if (info == response.info().end()) return std::string("overlayfs");
  ASSIGN_OR_RETURN(const json details,
                   archive::ParseObject(info->second, "the verbose status of the sandbox"));
  const std::string snapshotter = archive::TextField(details, "snapshotter");
  return snapshotter.empty() ? "overlayfs" : snapshotter;
}

Result<CheckpointPlace> CheckpointImages::Open(const CheckpointImage& image,
                                               const std::string& sandbox_id,
                                               const CallLimits& limits) {
  if (image.id.starts_with('/')) return CheckpointPlace{.path = image.id};
  if (image.chain_id.empty()) {
    return Unimplemented("the runtime does not tell where the layers of " + image.ref +
                         " are; restoring from an image needs containerd");
  }
  ASSIGN_OR_RETURN(const std::string snapshotter, SnapshotterOf(sandbox_id, limits));
  CheckpointPlace place{.path = "", .snapshotter = snapshotter, .snapshot_key = UniqueName()};

  leases::CreateRequest lease;
  lease.set_id(place.snapshot_key);
  (*lease.mutable_labels())[kOwnerLabel] = snapshotter;
  const Status taken =
      Call(&leases::Leases::Stub::Create, upstream_.leases(), lease, limits, kNamespace).status();
  if (!taken.ok()) {
    (void)Close(place, {});  // a call that was given up may have come through
    return Annotate(taken, "take a lease in containerd");
  }
  snapshots::ViewSnapshotRequest request;
  request.set_snapshotter(snapshotter);
  request.set_key(place.snapshot_key);
  request.set_parent(image.chain_id);
  Metadata metadata = kNamespace;
  metadata.emplace_back("containerd-lease", place.snapshot_key);
  const Result<snapshots::ViewSnapshotResponse> view =
      Call(&snapshots::Snapshots::Stub::View, upstream_.snapshots(), request, limits, metadata);
  if (!view.ok()) {
    (void)Close(place, {});  // already reporting worse
    return Annotate(view.status(), "view the unpacked layer of " + image.ref);
  }
  // One layer is shown as a bind of its directory, which can be read where it is. (types.Mount)
  if (view->mounts_size() != 1 || view->mounts(0).type() != "bind") {
    (void)Close(place, {});
    return FailedPrecondition("the checkpoint image " + image.ref +
                              " is not one plain layer in the " + snapshotter +
                              " snapshotter; make it with `stasis image`");
  }
  place.path = view->mounts(0).source();
  return place;
}

Status CheckpointImages::Close(const CheckpointPlace& place, const CallLimits& limits) {
  if (place.snapshot_key.empty()) return OkStatus();
  snapshots::RemoveSnapshotRequest snapshot;
  snapshot.set_snapshotter(place.snapshotter);
  snapshot.set_key(place.snapshot_key);
  const Status removed =
      Call(&snapshots::Snapshots::Stub::Remove, upstream_.snapshots(), snapshot, limits, kNamespace)
          .status();
  if (!removed.ok() && removed.code() != StatusCode::kNotFound) return removed;
  leases::DeleteRequest lease;
  lease.set_id(place.snapshot_key);
  const Status deleted =
      Call(&leases::Leases::Stub::Delete, upstream_.leases(), lease, limits, kNamespace).status();
  return deleted.code() == StatusCode::kNotFound ? OkStatus() : deleted;
}

Status CheckpointImages::CloseForgotten(const Records& records, const CallLimits& limits) {
  leases::ListRequest request;
  request.add_filters("labels.\"" + std::string(kOwnerLabel) + "\"");
  const Result<leases::ListResponse> ours =
      Call(&leases::Leases::Stub::List, upstream_.leases(), request, limits, kNamespace);
  if (ours.status().code() == StatusCode::kUnimplemented) return OkStatus();  // not containerd
  if (!ours.ok()) return ours.status();
  const std::vector<RestoredContainer> known = records.All();
  for (const leases::Lease& lease : ours->leases()) {
    const bool held = std::any_of(known.begin(), known.end(), [&](const RestoredContainer& record) {
      return record.checkpoint.snapshot_key == lease.id();
    });
    const auto label = lease.labels().find(kOwnerLabel);
    if (held || label == lease.labels().end()) continue;
    RETURN_IF_ERROR(Close({"", label->second, lease.id()}, limits));
  }
  return OkStatus();
}

}  // namespace stasis::cri
