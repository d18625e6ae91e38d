// What can be asked of the agent other than by CRI: by the REST API.
#pragma once

#include <string>

#include "cri/activity.h"
#include "cri/checkpoint/checkpointer.h"
#include "cri/checkpoint/container_checkpoint.h"
#include "engine/dump_check.h"

namespace stasis::cri {

class Agent {
 public:
  /// All outlive this.
  Agent(Upstream& upstream, Checkpointer& checkpointer, Activity& activity)
      : upstream_(upstream), checkpointer_(checkpointer), activity_(activity) {}

  /// The id of a container of a pod: of its latest instance, where it was restarted. NotFound: this node has no
  /// such pod or container.
  Result<std::string> Find(const PodContainer& names, const CallLimits& limits);

  /// As CheckpointContainer. Blocks its thread, which becomes the tracer for that time.
  Result<ContainerCheckpoint> Checkpoint(const std::string& id, const std::string& location,
                                         const CallLimits& limits,
                                         const archive::ChosenCompression& chosen = {}) {
    return checkpointer_.Checkpoint(id, location, limits, chosen);
  }

  /// What would be in the way of a checkpoint of container `id`, which runs on undisturbed.
  Result<engine::DumpCheck> Check(const std::string& id, const CallLimits& limits);

  /// OK when the container runtime answers.
  Status Ready(const CallLimits& limits);

  Activity& activity() { return activity_; }

 private:
  Upstream& upstream_;
  Checkpointer& checkpointer_;
  Activity& activity_;
};

}  // namespace stasis::cri
