// The transport under cpprestsdk's http_listener: its own gives a request's handler no client certificate, and
// puts no limit on headers, bodies, connections and slow clients (docs/decisions).
#pragma once

#include <cpprest/details/http_server.h>

#include <atomic>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>

#include "engine/base/unique_fd.h"
#include "kubelet-api/transport/connections.h"
#include "kubelet-api/transport/exchange.h"
#include "kubelet-api/transport/tls.h"

namespace stasis::kubelet_api {

struct ServerLimits {
  int connections = 64;
  int connections_an_address = 24;
  std::uint32_t header_bytes = 32 << 10;  ///< Bearer tokens with many claims are long.
  std::uint64_t body_bytes = 64 << 10;    ///< No request needs one; it is read and forgotten.
  std::chrono::milliseconds request_time{10'000};  ///< For the handshake, and for a whole request.
  std::chrono::milliseconds idle_time{30'000};     ///< Between requests, of those who are known.
  std::chrono::milliseconds write_time{30'000};    ///< For each 64 KiB.
  /// Then a client has to come anew: its certificate is looked at in the handshake.
  std::chrono::milliseconds connection_time{600'000};
};

using Request = boost::beast::http::request<boost::beast::http::string_body>;

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

  /// Takes no new connection; requests under way have `grace`, then their stop tokens are requested. Ends when
  /// they have.
  void Shutdown(std::chrono::milliseconds grace);

  /// Connections without a request under way: an answer is with its client before its request is over here.
  int CountIdle() const { return connections_.CountIdle(); }

 private:
  struct Session;

  void Accept();
  void Welcome(UniqueFd socket, const Peer& peer);
  void Serve(Connections::Id id, const Peer& peer);
  bool ServeOne(Session& session);
  bool Handle(Session& session, const Request& from);
  bool Answer(Session& session, Exchange& exchange, web::http::http_response response, bool keep,
              bool head);
  bool AnswerPlainly(Session& session, int code, const char* text);
  std::chrono::steady_clock::time_point WriteDeadline() const;

  const UniqueFd socket_;
  UniqueFd wake_;
  const std::unique_ptr<Tls> tls_;
  const ServerLimits limits_;
  Connections connections_;
  std::thread acceptor_;
  std::stop_source stop_;
  std::atomic<bool> ended_ = false;
  std::atomic<Listener*> listener_ = nullptr;
};

}  // namespace stasis::kubelet_api
