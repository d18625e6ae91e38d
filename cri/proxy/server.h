// The gRPC server in front of the runtime: a table says what is not simply passed on.
#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>

#include "cri/proxy/handler.h"
#include "cri/proxy/listener.h"
#include "cri/proxy/relay.h"
#include "cri/proxy/upstream.h"

namespace stasis::cri {

/// What is decoded, by method ("/runtime.v1.RuntimeService/CreateContainer"). Methods that are not
/// here, known to us or not, pass byte for byte.
struct MethodTable {
  std::map<std::string, Handler, std::less<>> handlers;      ///< Answered by us; may block.
  std::map<std::string, RelayFilters, std::less<>> filters;  ///< Passed on, looked at on the way.
};

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

  Server(Listener listener, Upstream& upstream, MethodTable table,
         std::atomic<std::uint64_t>& forwarded);
  void Accept();
  void Serve();
  void Take(std::unique_ptr<ClientEnd> client);

  Listener listener_;
  Upstream& upstream_;
  const MethodTable table_;
  std::atomic<std::uint64_t>& forwarded_;
  CallCount handled_;
  std::stop_source ending_;  ///< Stops handled calls.
  CallCount calls_;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::thread events_;  // the one on which all of gRPC's events happen
  UniqueFd wake_;       // an eventfd that ends Accept
  std::thread acceptor_;
  bool shut_down_ = false;
};

}  // namespace stasis::cri
