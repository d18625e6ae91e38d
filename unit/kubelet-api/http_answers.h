// A server on loopback that takes requests with their bodies, one at a time, and answers as a test says.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/unique_fd.h"

namespace stasis::testing {

struct HttpRequest {
  std::string method, path;
  nlohmann::json body;
};

struct HttpAnswer {
  int code = 200;
  std::string headers = {};  // whole lines
  bool never_ends = false;   // bytes of the body come until the client has enough
};

class HttpAnswers {
 public:
  using Handler = std::function<HttpAnswer(const HttpRequest&)>;

  /// Nobody is served before Begin(); the port is taken at once, and refuses.
  explicit HttpAnswers(Handler handler) : handler_(std::move(handler)) {
    socket_.Reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    ::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    url_ = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  }
  ~HttpAnswers() {
    ::shutdown(socket_.get(), SHUT_RDWR);  // ends accept(2)
    if (thread_.joinable()) thread_.join();
  }

  /// Clients can connect, and nothing comes.
  void Listen() { ::listen(socket_.get(), 64); }
  void Begin() {
    Listen();
    thread_ = std::thread([this] { Serve(); });
  }
  const std::string& url() const { return url_; }

  /// The first `count` requests, once they are there.
  std::vector<HttpRequest> Await(std::size_t count) {
    std::unique_lock lock(mutex_);
    came_.wait(lock, [&] { return requests_.size() >= count; });
    return requests_;
  }

 private:
  void Serve() {
    while (true) {
      const UniqueFd client(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!client) return;
      HttpRequest request;
      if (!Read(client.get(), request)) continue;
      {
        const std::lock_guard lock(mutex_);
        requests_.push_back(request);
        came_.notify_all();
      }
      const HttpAnswer answer = handler_(request);
      const std::string text =
          "HTTP/1.1 " + std::to_string(answer.code) +
          " Said\r\nConnection: close\r\nContent-Type: application/json\r\n" + answer.headers +
          "Content-Length: " + (answer.never_ends ? "99999999\r\n\r\n" : "2\r\n\r\n{}");
      (void)::send(client.get(), text.data(), text.size(), MSG_NOSIGNAL);
      while (answer.never_ends && ::send(client.get(), " ", 1, MSG_NOSIGNAL) == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
  }

  static bool Read(int client, HttpRequest& request) {
    std::string text;
    const auto more = [&] {
      std::array<char, 4096> piece;
      const ssize_t got = ::recv(client, piece.data(), piece.size(), 0);
      if (got > 0) text.append(piece.data(), static_cast<std::size_t>(got));
      return got > 0;
    };
    std::size_t end = 0;
    while ((end = text.find("\r\n\r\n")) == std::string::npos) {
      if (!more()) return false;
    }
    const std::size_t length = text.find("Content-Length:");
    const std::size_t size =
        end + 4 + (length < end ? std::strtoul(text.c_str() + length + 15, nullptr, 10) : 0);
    while (text.size() < size) {
      if (!more()) return false;
    }
    const std::size_t space = text.find(' ');
    request.method = text.substr(0, space);
    request.path = text.substr(space + 1, text.find(' ', space + 1) - space - 1);
    request.body = nlohmann::json::parse(text.substr(end + 4), nullptr, /*allow_exceptions=*/false);
    return true;
  }

  const Handler handler_;
  UniqueFd socket_;
  std::string url_;
  std::mutex mutex_;
  std::condition_variable came_;
  std::vector<HttpRequest> requests_;
  std::thread thread_;
};

}  // namespace stasis::testing
