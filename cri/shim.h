// The CRI shim as a whole: the proxy, the calls that are answered here, and what must survive a
// restart.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "archive/compression.h"
#include "cri/agent.h"
#include "cri/restore/restore_options.h"
#include "engine/base/status.h"
#include "engine/options.h"

namespace stasis::cri {

struct ShimOptions {
  std::string listen;               ///< unix:///path of our own socket.
  std::string runtime_endpoint;     ///< unix:///path of the runtime's socket.
  std::string state_dir;            ///< What is known of restored containers; made when missing.
  RestoreOptions restore;           ///< Of every restore.
  engine::Options checkpoint = {};  ///< Of every checkpoint.
  PodEvents* events = nullptr;      ///< Told of checkpoints and restores; outlives the shim.
  CheckpointLimits limits = {};
  archive::CompressionPolicy compression = {};
};

class Shim {
 public:
  /// Serves from here on. AlreadyExists: another instance has the state directory or the socket.
  static Result<std::unique_ptr<Shim>> Start(const ShimOptions& options);

  virtual ~Shim() = default;

  /// What else can be asked of it, for as long as it lives.
  virtual Agent& agent() = 0;

  /// Takes no new connection; checkpoints and restores under way have `grace` to end. Containers
  /// run on.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

}  // namespace stasis::cri
