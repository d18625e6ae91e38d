// kubectl as the way to a cluster: its configuration, its credentials (exec plugins among them), its TLS.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::kubelet_api {

class Kubectl {
 public:
  /// `flags` go before every command ("--context=x"). $KUBECTL names the program, kubectl unless set.
  explicit Kubectl(std::vector<std::string> flags) : flags_(std::move(flags)) {}

  /// What it prints. The error is its own text: NotFound, PermissionDenied, Unauthenticated, Unavailable (nobody
  /// answers), DeadlineExceeded, AlreadyExists as far as that tells; Unknown otherwise.
  /// With `most`, it is ended after that time (DeadlineExceeded), and what it asked for with it. Not by its own
  /// --request-timeout, which also becomes the parameter "timeout" of every request: the kubelet has one, too.
  Result<std::string> Run(const std::vector<std::string>& words,
                          std::chrono::seconds most = std::chrono::seconds(0)) const;
  /// The same with its output in the open file `fd`.
  Status RunTo(int fd, const std::vector<std::string>& words) const;

 private:
  const std::vector<std::string> flags_;
};

}  // namespace stasis::kubelet_api
