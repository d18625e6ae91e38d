#include "cri/restore/credentials.h"

#include <algorithm>

namespace stasis::cri {
namespace {

constexpr std::size_t kMaxEntries = 512;  // a kubelet runs some hundred pods

}  // namespace

std::string RegistryOf(const std::string& image) {
  // The first part names a registry only if it looks like a host: "library/redis" does not.
  const std::size_t slash = image.find('/');
  const std::string first = image.substr(0, slash);
  const bool host = slash != std::string::npos &&
                    (first.find_first_of(".:") != std::string::npos || first == "localhost");
  return host ? first : "docker.io";
}

void Credentials::Remember(const runtime::v1::PullImageRequest& request) {
  const std::string& pod_uid = request.sandbox_config().metadata().uid();
  if (!request.has_auth() || pod_uid.empty()) return;
  const std::string registry = RegistryOf(request.image().image());
  const std::lock_guard lock(mutex_);
  std::erase_if(entries_, [&](const Entry& entry) {
    return entry.pod_uid == pod_uid && entry.registry == registry;
  });
  entries_.push_back({pod_uid, registry, request.auth()});
  if (entries_.size() > kMaxEntries) entries_.pop_front();
}

std::optional<runtime::v1::AuthConfig> Credentials::For(const std::string& pod_uid,
                                                        const std::string& image) const {
  const std::string registry = RegistryOf(image);
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.pod_uid == pod_uid && entry.registry == registry;
  });
  return found == entries_.end() ? std::nullopt : std::optional(found->auth);
}

}  // namespace stasis::cri
