// Registry credentials that the kubelet gave for a pod's image, for the base image under a
// checkpoint.
#pragma once

#include <deque>
#include <mutex>
#include <optional>
#include <string>

#include "cri/schema/runtime.pb.h"

namespace stasis::cri {

/// The registry that `image` is pulled from: "docker.io" when it names none.
std::string RegistryOf(const std::string& image);

/// Kept in memory only. A pod's credentials serve no other pod, and no other registry than the one
/// they were given for: the base image's name comes from the archive, which could name a registry
/// of its maker's to be sent them.
class Credentials {
 public:
  void Remember(const runtime::v1::PullImageRequest& request);

  /// What the pod `pod_uid` last pulled from the registry of `image` with.
  std::optional<runtime::v1::AuthConfig> For(const std::string& pod_uid,
                                             const std::string& image) const;

 private:
  struct Entry {
    std::string pod_uid;
    std::string registry;
    runtime::v1::AuthConfig auth;
  };

  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // the latest last; the oldest goes when there are too many
};

}  // namespace stasis::cri
