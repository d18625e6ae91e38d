// The services of the node, through systemctl(1).
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "engine/base/status.h"

namespace stasis::node {

/// What a program said that ran to its end. Internal, with that: it ended otherwise than by 0.
Result<std::string> RunProgram(const std::vector<std::string>& command);

class Services {
 public:
  /// `offline`: nothing is started or stopped, as the node does not run (an image that is being made).
  explicit Services(bool offline) : offline_(offline) {}

  bool offline() const { return offline_; }
  Status Systemctl(std::vector<std::string> arguments) const;

  /// A property of `service`, as systemctl(1) shows it; "" where there is none of the name.
  Result<std::string> Show(const std::string& service, const std::string& property) const;

  /// Restarts `service` and waits until it has run for `kSteady` without a break. DeadlineExceeded: it was
  /// restarted, but not so within `patience`. Any other error: what ran before may still run.
  Status RestartSteadily(const std::string& service, std::chrono::seconds patience) const;

 private:
  bool offline_;
};

}  // namespace stasis::node
