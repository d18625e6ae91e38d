// The services of the node, through systemctl(1).
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::node {

/// Runs a program to its end. Internal, with what it said: it ended otherwise than by 0.
Status RunProgram(const std::vector<std::string>& command);

class Services {
 public:
  /// `offline`: nothing is started or stopped, as the node does not run (an image that is being made).
  explicit Services(bool offline) : offline_(offline) {}

  bool offline() const { return offline_; }
  Status Systemctl(std::vector<std::string> arguments) const;

  /// Restarts `service` and waits until it has run for `kSteady` without a break. DeadlineExceeded:
  /// not within `patience`.
  Status RestartSteadily(const std::string& service, std::chrono::seconds patience) const;

 private:
  bool offline_;
};

}  // namespace stasis::node
