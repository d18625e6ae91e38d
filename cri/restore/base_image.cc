#include "cri/restore/base_image.h"

#include <algorithm>
#include <vector>

#include "archive/json_fields.h"

namespace stasis::cri {
namespace {

constexpr std::size_t kMaxNameBytes = 1024;

// Image names come from the archive: they go into requests and messages, and nothing else.
bool IsPlausible(const std::string& name) {
  return !name.empty() && name.size() <= kMaxNameBytes && name.front() != '/' &&
         std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

// CRI-O writes the id of an image, containerd "name@sha256:…"; only the latter can be pulled.
bool IsId(const std::string& name) {
  const std::string digits = name.starts_with("sha256:") ? name.substr(7) : name;
  return digits.size() == 64 && digits.find_first_not_of("0123456789abcdef") == std::string::npos;
}

/// What the archive calls its base image, the most exact first.
std::vector<std::string> NamesIn(const nlohmann::json& config_dump) {
  std::vector<std::string> names;
  for (const char* key : {"rootfsImageRef", "rootfsImageName", "rootfsImage"}) {
    std::string name = archive::TextField(config_dump, key);
    if (name.size() == 64 && IsId(name)) name = "sha256:" + name;
    if (IsPlausible(name) && std::find(names.begin(), names.end(), name) == names.end()) {
      names.push_back(name);
    }
  }
  return names;
}

/// The id of the image `name`; empty when the node does not have it.
Result<std::string> LocalId(Upstream& upstream, const std::string& name, const CallLimits& limits) {
  runtime::v1::ImageStatusRequest request;
  request.mutable_image()->set_image(name);
  ASSIGN_OR_RETURN(
      const runtime::v1::ImageStatusResponse response,
      Call(&runtime::v1::ImageService::Stub::ImageStatus, upstream.images(), request, limits));
  return response.image().id();
}

Status Pull(Upstream& upstream, const Credentials& credentials, const std::string& name,
            const runtime::v1::PodSandboxConfig& sandbox, const CallLimits& limits) {
  runtime::v1::PullImageRequest request;
  request.mutable_image()->set_image(name);
  *request.mutable_sandbox_config() = sandbox;
  if (const auto auth = credentials.For(sandbox.metadata().uid(), name)) {
    *request.mutable_auth() = *auth;
  }
  return Call(&runtime::v1::ImageService::Stub::PullImage, upstream.images(), request, limits)
      .status();
}

}  // namespace

Result<BaseImage> FindOrPullBaseImage(Upstream& upstream, const Credentials& credentials,
                                      const nlohmann::json& config_dump,
                                      const runtime::v1::PodSandboxConfig& sandbox,
                                      const CallLimits& limits) {
  const std::vector<std::string> names = NamesIn(config_dump);
  if (names.empty()) return InvalidArgument("the checkpoint's config.dump names no base image");
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const std::string id, LocalId(upstream, name, limits));
    if (!id.empty()) return BaseImage{id, names.back()};
  }
  Status pulled = NotFound("it has no name that could be pulled");
  for (const std::string& name : names) {
    if (IsId(name)) continue;
    pulled = Pull(upstream, credentials, name, sandbox, limits);
    if (!pulled.ok()) continue;
    ASSIGN_OR_RETURN(const std::string id, LocalId(upstream, name, limits));
    if (!id.empty()) return BaseImage{id, names.back()};
  }
  return NotFound(
      "the base image " + names.front() +
      " of the checkpoint is not on this node and cannot be pulled: " + Message(pulled) +
      "; pull it to the node, or give the pod an imagePullSecret for " + RegistryOf(names.back()));
}

}  // namespace stasis::cri
