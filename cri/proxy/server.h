// What stands in front of the runtime: a router that passes calls on, and behind it the gRPC server for those
// that are answered here.
#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "cri/proxy/handler_service.h"
#include "cri/proxy/listener.h"
#include "cri/proxy/method_table.h"
#include "cri/proxy/router.h"
#include "cri/proxy/upstream.h"

namespace stasis::cri {

class Server {
 public:
  /// Serves `listener` until Shutdown. `forwarded` counts what is passed on; it and `upstream` outlive the
  /// server.
  static Result<std::unique_ptr<Server>> Start(Listener listener, Upstream& upstream,
                                               MethodTable table,
                                               std::atomic<std::uint64_t>& forwarded);
  ~Server();

  /// Takes no new connection, gives the handled calls `grace` to end, then has them give up, and cuts what is left.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  explicit Server(MethodTable table) : table_(std::move(table)) {}
  Status ServeHandlers();
  Result<UniqueFd> ConnectToHandlers();

  const MethodTable table_;
  HandlerService handlers_{table_.handlers};
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> no_more_ = false;  // handled calls are taken
  std::unique_ptr<Router> router_;
  bool shut_down_ = false;
};

}  // namespace stasis::cri
