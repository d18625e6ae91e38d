// Checkpoints become images in a registry, pushed from the node that has them.
//
// Whoever may push by the agent uses the node's network and the node's credentials. So it goes nowhere but where the
// administrator of the node allows it, and each namespace can have a place of its own there.
#pragma once

#include <atomic>
#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "archive/archive.h"
#include "engine/base/status.h"

namespace stasis::kubelet_api {

struct PushRules {
  /// What names have to begin with, each up to a '/': "registry.example/checkpoints/{namespace}/". Before it,
  /// "http://" where the registry has no TLS. None: nothing is pushed.
  std::vector<std::string> to;
  std::string auth_file;  ///< Credentials, as `docker login` keeps them.
};

struct PushedImage {
  std::string name;
  std::string digest;
  std::uint64_t layer_bytes = 0;
  std::uint64_t uploaded_bytes = 0;
};

class ImagePusher {
 public:
  explicit ImagePusher(PushRules rules) : rules_(std::move(rules)) {}

  /// InvalidArgument: a rule that would allow more than it says.
  static Status Check(const PushRules& rules);

  /// Pushes `checkpoint` of namespace `pod_namespace` as `reference`. PermissionDenied: it may not go there.
  /// Unavailable: others are being pushed, or the registry does not answer. FailedPrecondition: it refuses. Cancelled: `stop`
  /// came first.
  Result<PushedImage> Push(const archive::Archive& checkpoint, const std::string& pod_namespace,
                           const std::string& reference, const std::stop_token& stop);

 private:
  const PushRules rules_;
  std::atomic<int> pushes_ = 0;
};

}  // namespace stasis::kubelet_api
