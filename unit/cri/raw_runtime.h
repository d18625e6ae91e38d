// A server of HTTP/2 that stands for a runtime in tests of what gRPC's own server cannot be made to do.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cri/proxy/http2.h"

namespace stasis::testing {

/// A stream on which nothing is listened to.
class DeafStream final : public cri::Http2Stream {
  void OnHeaders(cri::Headers /*headers*/, bool /*end*/) override {}
  void OnData(std::string_view /*bytes*/) override {}
  void OnEnd() override {}
  void OnSent(std::size_t /*bytes*/) override {}
  void OnClose(std::uint32_t /*error*/) override {}
};

class RawRuntime final : private cri::Http2Connection::Owner {
 public:
  /// `asked` runs for each request, on the runtime's thread: what it does to the connection and the stream is sent.
  using Asked = std::function<void(cri::Http2Connection& connection, DeafStream& stream)>;

  RawRuntime(const std::string& socket, Asked asked) : asked_(std::move(asked)) {
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    socket.copy(address.sun_path, sizeof(address.sun_path) - 1);
    listener_ = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    (void)::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    (void)::listen(listener_.get(), 8);
    thread_ = std::jthread([this](const std::stop_token& stop) {
      while (!stop.stop_requested()) Turn();
    });
  }

 private:
  void RequestCame(cri::Http2Connection& connection, std::int32_t id, cri::Headers /*headers*/,
                   bool /*end*/) override {
    streams_.push_back(std::make_unique<DeafStream>());
    connection.Attach(id, *streams_.back());
    asked_(connection, *streams_.back());
  }
  void Changed(cri::Http2Connection& /*connection*/) override {}
  void Over(cri::Http2Connection& /*connection*/) override {}

  void Turn() {
    constexpr int kSoonMs = 10;
    std::vector<pollfd> polled = {{listener_.get(), POLLIN, 0}};
    for (const cri::Http2Connection& connection : connections_) {
      polled.push_back({connection.fd(), POLLIN, 0});
    }
    (void)::poll(polled.data(), polled.size(), kSoonMs);
    std::size_t at = 0;
    for (cri::Http2Connection& connection : connections_) {
      if (polled[++at].revents != 0 && !connection.over()) connection.Read();
      if (!connection.over()) connection.Flush();
    }
    connections_.remove_if(
        [](const cri::Http2Connection& connection) { return connection.over(); });
    if (polled[0].revents == 0) return;
    UniqueFd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    Owner& owner = *this;  // which emplace_back cannot see
    connections_.emplace_back(std::move(client), cri::Http2Connection::Side::kServer, owner);
  }

  const Asked asked_;
  UniqueFd listener_;
  std::list<std::unique_ptr<DeafStream>> streams_;
  std::list<cri::Http2Connection> connections_;
  std::jthread thread_;
};

}  // namespace stasis::testing
