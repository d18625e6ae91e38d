#include "kubelet-api/image_pusher.h"

#include <absl/cleanup/cleanup.h>
#include <absl/strings/str_replace.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "archive/checkpoint_image.h"
#include "archive/image_reference.h"
#include "archive/registry.h"

namespace stasis::kubelet_api {
namespace {

constexpr int kMostPushes = 2;  // at once: each reads its archive twice
constexpr std::string_view kPlain = "http://";
constexpr std::string_view kTls = "https://";

struct Place {
  bool plain_http = false;
  std::string prefix;
};

Place PlaceOf(std::string_view rule, const std::string& pod_namespace) {
  Place place;
  if (rule.starts_with(kPlain)) {
    place.plain_http = true;
    rule.remove_prefix(kPlain.size());
  } else if (rule.starts_with(kTls)) {
    rule.remove_prefix(kTls.size());
  }
  place.prefix = absl::StrReplaceAll(std::string(rule), {{"{namespace}", pod_namespace}});
  return place;
}

}  // namespace

Status ImagePusher::Check(const PushRules& rules) {
  for (const std::string& rule : rules.to) {
    const std::string prefix = PlaceOf(rule, "namespace").prefix;
    // "registry.example" would allow registry.example.attacker.example, too.
    const bool is_folder = prefix.ends_with('/') && prefix.find('/') > 0;
    if (!is_folder || !archive::ParseImageReference(prefix + "name:tag").ok()) {
      return InvalidArgument("--push-to " + rule +
                             " is not REGISTRY/ or REGISTRY/FOLDER/, with the slash at its end");
    }
  }
  return OkStatus();
}

Result<PushedImage> ImagePusher::Push(const archive::Archive& checkpoint,
                                      const std::string& pod_namespace,
                                      const std::string& reference, const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const archive::ImageReference name, archive::ParseImageReference(reference));
  if (rules_.to.empty()) {
    return PermissionDenied(
        "the agent of this node pushes no images; an administrator says where to by --push-to");
  }
  std::string allowed;
  const auto rule = std::ranges::find_if(rules_.to, [&](const std::string& one) {
    const std::string prefix = PlaceOf(one, pod_namespace).prefix;
    allowed += " " + prefix + "NAME:TAG";
    return name.Text().starts_with(prefix);
  });
  if (rule == rules_.to.end()) {
    return PermissionDenied("images of namespace " + pod_namespace + " may not be pushed to " +
                            name.Text() + ", only to" + allowed);
  }
  const absl::Cleanup done = [this] { --pushes_; };
  if (++pushes_ > kMostPushes) {
    return Unavailable("other images are being pushed from this node; try again");
  }
  RETURN_IF_ERROR(archive::CheckUnaltered(checkpoint, {}, stop));
  ASSIGN_OR_RETURN(const archive::CheckpointImage image,
                   archive::DescribeImage(checkpoint, {}, stop));
  const Result<archive::PushReport> report =
      archive::PushImage(checkpoint, image, name,
                         {.plain_http = PlaceOf(*rule, pod_namespace).plain_http,
                          .auth_file = rules_.auth_file,
                          .progress = {},
                          .stop = stop});
  // The registry's opinion of the node's credentials is not this agent's of the caller.
  if (report.status().code() == StatusCode::kPermissionDenied) {
    return FailedPrecondition(Message(report.status()));
  }
  RETURN_IF_ERROR(report.status());
  return PushedImage{.name = name.Text(),
                     .digest = report->manifest_digest,
                     .layer_bytes = image.layer_size,
                     .uploaded_bytes = report->uploaded_bytes};
}

}  // namespace stasis::kubelet_api
