// The first process of a container, held by more than its number: numbers are given again.
#pragma once

#include "cri/container_facts.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::cri {

class PinnedProcess {
 public:
  /// NotFound: it has ended. FailedPrecondition: the process of that number is not in the container's cgroup, so
  /// it is another's; the runtime does not know yet that its own has ended.
  static Result<PinnedProcess> Of(const ContainerFacts& facts);

  /// While this is OK, all that was read by the number since Of() was of this process. NotFound: it has ended.
  Status StillThere() const;

 private:
  PinnedProcess(UniqueFd pidfd, const ContainerFacts& facts)
      : pidfd_(std::move(pidfd)), id_(facts.status.id()) {}

  UniqueFd pidfd_;
  std::string id_;
};

}  // namespace stasis::cri
