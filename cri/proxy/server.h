// What stands in front of the runtime: a router that passes calls on, and behind it the gRPC server for those
// that are answered here.
#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <thread>

#include "cri/proxy/handler.h"
#include "cri/proxy/listener.h"
#include "cri/proxy/method_table.h"
#include "cri/proxy/router.h"
#include "cri/proxy/server_call.h"
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
  class Arrival;

  explicit Server(MethodTable table) : table_(std::move(table)) {}
  Status ServeHandlers();
  Result<UniqueFd> ConnectToHandlers();
  void Serve();
  void Take(std::unique_ptr<ClientEnd> client);

  const MethodTable table_;
  CallCount handled_;
  std::stop_source ending_;  ///< Stops handled calls.
  CallCount calls_;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::thread events_;                 // the one on which all of gRPC's events happen
  std::atomic<bool> no_more_ = false;  // handled calls are taken
  std::unique_ptr<Router> router_;
  bool shut_down_ = false;
};

}  // namespace stasis::cri
