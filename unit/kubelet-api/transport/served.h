// An HttpServer on loopback, whose requests a function answers, and plain clients of it. One at a time in a
// process.
#pragma once

#include <arpa/inet.h>
#include <cpprest/details/http_server_api.h>
#include <cpprest/http_listener.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "kubelet-api/transport/http_server.h"

namespace stasis::testing {

/// A client from 127.0.0.`from`.
class PlainClient {
 public:
  PlainClient(std::uint16_t port, int from)
      : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in own = Loopback(from, 0), server = Loopback(1, port);
    connected_ =
        ::bind(socket_.get(), reinterpret_cast<sockaddr*>(&own), sizeof(own)) == 0 &&
        ::connect(socket_.get(), reinterpret_cast<sockaddr*>(&server), sizeof(server)) == 0;
  }

  bool connected() const { return connected_; }
  bool Send(const std::string& text) const {
    return ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(text.size());
  }
  /// All that comes until `end` is in it, or the server hangs up.
  std::string ReadUntil(const std::string& end) const {
    std::string text;
    std::array<char, 4096> piece;
    while (text.find(end) == std::string::npos) {
      const ssize_t got = ::recv(socket_.get(), piece.data(), piece.size(), 0);
      if (got <= 0) break;
      text.append(piece.data(), static_cast<std::size_t>(got));
    }
    return text;
  }
  std::string Get(const std::string& path) const {
    Send("GET " + path + " HTTP/1.1\r\nHost: test\r\n\r\n");
    return ReadUntil("\n.\n");
  }
  /// The server hung up: waits for it.
  bool IsLeft() const { return ReadUntil("anything").empty(); }
  /// As far as it is known now.
  bool IsOpen() const {
    pollfd waiting = {socket_.get(), POLLRDHUP, 0};
    return ::poll(&waiting, 1, 0) == 0;
  }

 private:
  static sockaddr_in Loopback(int last, std::uint16_t port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(0x7f000000U + static_cast<unsigned>(last));
    return address;
  }

  UniqueFd socket_;
  bool connected_ = false;
};

class Served {
 public:
  using Handler = std::function<void(const web::http::http_request&)>;

  explicit Served(Handler handler, const kubelet_api::ServerLimits& limits = {})
      : listener_(web::uri("http://localhost/")) {
    UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    ::listen(socket.get(), 64);
    ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    auto server = std::make_unique<kubelet_api::HttpServer>(std::move(socket), nullptr, limits);
    server_ = server.get();
    ServerApi::register_server_api(std::move(server));
    listener_.support(std::move(handler));
    listener_.open().wait();
  }
  ~Served() {
    server_->Shutdown(std::chrono::milliseconds(0));
    listener_.close().wait();
    ServerApi::unregister_server_api();
  }

  PlainClient Client(int from = 1) const { return {port_, from}; }
  kubelet_api::HttpServer& server() { return *server_; }
  /// Only who is idle can be made to leave.
  void AwaitIdle(int count) const {
    while (server_->CountIdle() != count) std::this_thread::yield();
  }

 private:
  using ServerApi = web::http::experimental::details::http_server_api;

  web::http::experimental::listener::http_listener listener_;
  kubelet_api::HttpServer* server_ = nullptr;  // cpprestsdk has it
  std::uint16_t port_ = 0;
};

/// Answers with the path and a line that ends it; "/known" is of somebody who is authenticated.
inline void AnswerPath(const web::http::http_request& request) {
  const std::string path = request.request_uri().path();
  kubelet_api::ExchangeOf(request).authenticated = path == "/known";
  request.reply(200, path + "\n.\n").wait();
}

}  // namespace stasis::testing
