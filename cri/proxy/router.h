// The HTTP/2 router in front of the runtime: it passes each call, a stream, to the runtime byte for byte, or
// to who answers it here.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "cri/proxy/listener.h"
#include "cri/proxy/method_table.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::cri {

struct RouterOptions {
  Listener listener;
  /// New connections, without blocking, to the runtime and to who answers the methods of `table.handlers`. An
  /// error is told to the client.
  std::function<Result<UniqueFd>()> to_runtime;
  std::function<Result<UniqueFd>()> to_handlers;
  const MethodTable& table;               ///< Outlives the router.
  std::atomic<std::uint64_t>& forwarded;  ///< Counts the calls that go to the runtime; outlives it.
};

class Router {
 public:
  /// Serves on a thread of its own until Shutdown(). Each connection of a client has its own to the runtime:
  /// when one of them ends, so does the other's part in it.
  static Result<std::unique_ptr<Router>> Start(RouterOptions options);
  ~Router();

  /// Takes no new connection; those that are there go on.
  void StopListening();
  /// Takes no new call, gives those under way `grace` to end, and cuts what is left.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  class Loop;

  explicit Router(std::unique_ptr<Loop> loop);

  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

}  // namespace stasis::cri
