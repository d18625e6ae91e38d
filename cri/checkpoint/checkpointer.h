// CheckpointContainer: a running container becomes an archive, and runs on.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <utility>

#include "archive/compression.h"
#include "cri/activity.h"
#include "cri/checkpoint/container_checkpoint.h"
#include "cri/checkpoint/namespace_share.h"
#include "cri/container_facts.h"
#include "cri/keyed_locks.h"
#include "cri/proxy/server.h"
#include "cri/restore/records.h"
#include "engine/dump.h"

namespace stasis::cri {

struct CheckpointLimits {
  int at_once = 16;  ///< On the node; more are refused (Unavailable, EAGAIN), not put off.
  int least_free_percent = 5;  ///< Of the disk of archives; 0: all of it may be used.
  int namespace_percent =
      100;  ///< Of that disk, for archives of one namespace; 100: any number of them.
};

class Checkpointer {
 public:
  /// All references outlive this.
  Checkpointer(Upstream& upstream, const Records& records, KeyedLocks& locks, Activity& activity,
               const engine::Options& options, const CheckpointLimits& limits,
               archive::CompressionPolicy compression)
      : upstream_(upstream),
        records_(records),
        locks_(locks),
        activity_(activity),
        options_(options),
        limits_(limits),
        share_(limits.namespace_percent),
        compression_(std::move(compression)) {}

  /// Enters the call. This outlives the table.
  void AddTo(MethodTable& table);

  /// The container with this id, or this beginning of one, becomes the archive `location`, an absolute path.
  /// Blocks its thread, which becomes the tracer for that time. The outcome is logged and counted.
  /// `chosen` goes before the pod's annotation stasis.dev/compress, that before what is set for its namespace,
  /// and that before the agent's usual compression.
  Result<ContainerCheckpoint> Checkpoint(const std::string& id, const std::string& location,
                                         const CallLimits& limits,
                                         const archive::ChosenCompression& chosen = {});

  const engine::Options& options() const { return options_; }

 private:
  Reply CheckpointContainer(const IncomingCall& call);
  Result<ContainerCheckpoint> Make(const std::string& id, const std::string& location,
                                   const CallLimits& limits,
                                   const archive::ChosenCompression& chosen, EventSubject& of);
  Result<std::string> WholeId(const std::string& id, const CallLimits& limits);
  Result<std::optional<archive::Compression>> CompressionOf(
      const ContainerFacts& facts, const archive::ChosenCompression& chosen,
      const CallLimits& limits);
  Result<ContainerCheckpoint> Write(const ContainerFacts& facts, const std::string& location,
                                    const CallLimits& limits,
                                    const std::optional<archive::Compression>& compression);

  Upstream& upstream_;
  const Records& records_;
  KeyedLocks& locks_;  // by container id
  Activity& activity_;
  const engine::Options options_;
  const CheckpointLimits limits_;
  NamespaceShare share_;
  std::atomic<int> under_way_ = 0;
  const archive::CompressionPolicy compression_;
};

}  // namespace stasis::cri
