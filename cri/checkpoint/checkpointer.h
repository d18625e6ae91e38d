// CheckpointContainer: a running container becomes an archive, and runs on.
#pragma once

#include <chrono>
#include <string>

#include "cri/container_facts.h"
#include "cri/keyed_locks.h"
#include "cri/proxy/server.h"
#include "cri/restore/records.h"
#include "engine/dump.h"

namespace stasis::cri {

class Checkpointer {
 public:
  /// The first three outlive this.
  Checkpointer(Upstream& upstream, const Records& records, KeyedLocks& locks,
               const engine::Options& options)
      : upstream_(upstream), records_(records), locks_(locks), options_(options) {}

  /// Enters the call. This outlives the table.
  void AddTo(MethodTable& table);

 private:
  Reply CheckpointContainer(const IncomingCall& call);
  Status Checkpoint(const runtime::v1::CheckpointContainerRequest& request,
                    const CallLimits& limits);
  Status Write(const ContainerFacts& facts, const std::string& location, const CallLimits& limits);

  Upstream& upstream_;
  const Records& records_;
  KeyedLocks& locks_;  // by container id
  const engine::Options options_;
};

}  // namespace stasis::cri
