// The transport under cpprestsdk's http_listener: its own gives a request's handler no client certificate, and
// puts no limit on headers, bodies, connections and slow clients (docs/decisions).
#pragma once

#include <cpprest/details/http_server.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include "engine/base/unique_fd.h"
#include "kubelet-api/transport/exchange.h"
#include "kubelet-api/transport/tls.h"

namespace stasis::kubelet_api {

struct ServerLimits {
  int connections = 64;
  int connections_an_address = 24;
  std::uint32_t header_bytes = 32 << 10;  ///< Bearer tokens with many claims are long.
  std::uint64_t body_bytes = 64 << 10;    ///< No request needs one; it is read and forgotten.
  std::chrono::milliseconds request_time{10'000};  ///< For the handshake, and for a whole request.
  std::chrono::milliseconds idle_time{30'000};     ///< Between requests.
  std::chrono::milliseconds write_time{30'000};    ///< For each 64 KiB.
};

class HttpServer : public web::http::experimental::details::http_server {
 public:
  using Listener = web::http::experimental::listener::details::http_listener_impl;

  /// `socket` listens. `tls` null: plain HTTP.
  HttpServer(UniqueFd socket, std::unique_ptr<Tls> tls, const ServerLimits& limits);
  ~HttpServer() override;

  pplx::task<void> start() override;
  pplx::task<void> stop() override;
  pplx::task<void> register_listener(Listener* listener) override;
  pplx::task<void> unregister_listener(Listener* listener) override;
  pplx::task<void> respond(web::http::http_response response) override;

  /// Takes no new connection; requests under way have `grace`, then their stop tokens are requested.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  void Accept();
  bool Admit(const std::string& address, int fd);
  void Serve(UniqueFd socket, const std::string& address);
  bool ServeOne(Connection& connection, const std::string& address);
  bool Answer(Connection& connection, Exchange& exchange, web::http::http_response response,
              bool keep, bool head);
  bool AnswerPlainly(Connection& connection, int code, const char* text);

  const UniqueFd socket_;
  UniqueFd wake_;
  const std::unique_ptr<Tls> tls_;
  const ServerLimits limits_;
  std::thread acceptor_;
  std::stop_source stop_;

  std::mutex mutex_;
  std::condition_variable changed_;
  Listener* listener_ = nullptr;
  std::map<std::string, int> by_address_;
  std::map<int, bool> busy_;  // the sockets of connections, and whether a request is handled
  bool ending_ = false;
};

}  // namespace stasis::kubelet_api
