// One client's connection, and those that its calls take from here.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string_view>
#include <unordered_map>

#include "cri/proxy/http2.h"
#include "cri/proxy/router.h"

namespace stasis::cri {

/// What connections need of whoever watches their sockets.
class SocketWatcher {
 public:
  virtual void Watch(Http2Connection& connection) = 0;
  virtual void Forget(Http2Connection& connection) = 0;
  virtual void FlushSoon(Http2Connection& connection) = 0;

 protected:
  ~SocketWatcher() = default;
};

class RoutedClient final : public Http2Connection::Owner {
 public:
  RoutedClient(UniqueFd socket, const RouterOptions& options, SocketWatcher& watcher);
  ~RoutedClient();

  /// The client has gone.
  bool over() const { return connection_.over(); }
  bool idle() const { return calls_.empty(); }
  /// Destroys connections that are over.
  void Sweep();
  /// No new calls.
  void GoAway();

 private:
  class Call;
  enum class Way { kRuntime, kHandlers };
  struct Backend {
    Backend(UniqueFd socket, Way where, Http2Connection::Owner& owner)
        : way(where), connection(std::move(socket), Http2Connection::Side::kClient, owner) {}
    Way way;
    Http2Connection connection;
  };

  void RequestCame(Http2Connection& connection, std::int32_t id, Headers headers,
                   bool end) override;
  void Changed(Http2Connection& connection) override { watcher_.FlushSoon(connection); }
  void Over(Http2Connection& connection) override;

  Result<Http2Connection*> Connect(Way way);
  Status Begin(Way way, Http2Stream& stream, const Headers& headers, bool end);

  const RouterOptions& options_;
  SocketWatcher& watcher_;
  Http2Connection connection_;
  std::list<Backend> backends_;
  std::unordered_map<const Call*, std::unique_ptr<Call>> calls_;
};

}  // namespace stasis::cri
