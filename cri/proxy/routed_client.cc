#include "cri/proxy/routed_client.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "cri/proxy/grpc_wire.h"

namespace stasis::cri {
namespace {

constexpr std::string_view kRuntimeLost =
    "the container runtime closed the connection before it had answered; ask again";
constexpr std::string_view kHandlersLost = "stasisd on this node ends; ask again when it is back";

// Of a message that a filter may change.
void DropLength(Headers& headers) {
  std::erase_if(headers, [](const HeaderField& field) { return field.name == "content-length"; });
}

}  // namespace

// Two streams, of which each is sent what comes on the other.
class RoutedClient::Call {
 public:
  Call(RoutedClient& client, const MessageFilters* filters) : owner_(client) {
    if (filters == nullptr) return;
    if (filters->request) client_.changer.emplace(filters->request);
    if (filters->response) backend_.changer.emplace(filters->response);
  }

  Http2Stream& client() { return client_; }
  Http2Stream& backend() { return backend_; }

  /// What the backend was to send never comes.
  void Lose(std::string_view why) {
    backend_.Detach();
    Fail(why);
  }

  void Fail(std::string_view why) {
    if (client_.answered()) {
      client_.End(UnavailableTrailers(why));
    } else {
      client_.Respond(UnavailableResponse(why), true);
    }
    EndIfClosed();
  }

 private:
  class Half : public Http2Stream {
   public:
    Half(Call& call, Half& other) : call_(call), other_(other) {}

    std::optional<MessageChanger> changer;  // of what comes here

   private:
    void OnHeaders(Headers headers, bool end) override {
      const bool of_response = this == &call_.backend_ && !other_.answered();
      if (of_response) {
        if (changer) DropLength(headers);
        other_.Respond(headers, end);
      } else if (end) {
        SendRest();
        other_.End(std::move(headers));
      }
    }

    void OnData(std::string_view bytes) override {
      if (changer) {
        Consume(bytes.size());  // a message may be longer than the window
        other_.Send(changer->Change(bytes));
      } else if (other_.open() && !other_.ended()) {
        other_.Send(bytes);
      } else {
        Consume(bytes.size());
      }
    }

    void OnEnd() override {
      SendRest();
      other_.End({});
    }

    void OnSent(std::size_t bytes) override {
      if (!other_.changer) other_.Consume(bytes);
    }

    void OnClose(std::uint32_t error) override {
      if (!other_.ended() || this == &call_.client_) {
        other_.Reset(error == NGHTTP2_NO_ERROR ? std::uint32_t{NGHTTP2_CANCEL} : error);
      }
      call_.EndIfClosed();  // may destroy this
    }

    void SendRest() {
      if (changer) other_.Send(changer->Rest());
    }

    Call& call_;
    Half& other_;
  };

  void EndIfClosed() {
    if (!client_.open() && !backend_.open()) owner_.calls_.erase(this);
  }

  RoutedClient& owner_;
  Half client_{*this, backend_};
  Half backend_{*this, client_};
};

RoutedClient::RoutedClient(UniqueFd socket, const RouterOptions& options, SocketWatcher& watcher)
    : options_(options),
      watcher_(watcher),
      connection_(std::move(socket), Http2Connection::Side::kServer, *this) {
  watcher_.Watch(connection_);
  watcher_.FlushSoon(connection_);
}

RoutedClient::~RoutedClient() {
  watcher_.Forget(connection_);
  for (Backend& backend : backends_) watcher_.Forget(backend.connection);
}

void RoutedClient::RequestCame(Http2Connection& connection, std::int32_t id, Headers headers,
                               bool end) {
  const std::string_view method = Find(headers, ":path");
  const MethodTable& table = options_.table;
  const Way way = table.handlers.contains(method) ? Way::kHandlers : Way::kRuntime;
  if (way == Way::kRuntime) options_.forwarded.fetch_add(1, std::memory_order_relaxed);
  const auto found = table.filters.find(method);
  const MessageFilters* filters = found == table.filters.end() ? nullptr : &found->second;
  if (filters != nullptr && filters->request) DropLength(headers);
  auto made = std::make_unique<Call>(*this, filters);
  Call& call = *made;
  calls_.emplace(&call, std::move(made));
  connection.Attach(id, call.client());
  const Status begun = Begin(way, call.backend(), headers, end);
  if (!begun.ok()) call.Fail(Message(begun));
}

// A connection that has just been closed, or is used up, is no obstacle: another one is opened.
Status RoutedClient::Begin(Way way, Http2Stream& stream, const Headers& headers, bool end) {
  for (Backend& backend : backends_) {
    const bool usable = !backend.connection.over() && !backend.connection.drained();
    if (backend.way == way && usable && backend.connection.Request(stream, headers, end)) {
      return OkStatus();
    }
  }
  ASSIGN_OR_RETURN(UniqueFd socket,
                   way == Way::kRuntime ? options_.to_runtime() : options_.to_handlers());
  Backend& backend = backends_.emplace_back(std::move(socket), way, *this);
  watcher_.Watch(backend.connection);
  if (!backend.connection.Request(stream, headers, end))
    return Internal("a new connection is used up");
  return OkStatus();
}

void RoutedClient::Over(Http2Connection& connection) {
  if (&connection == &connection_) return;
  const auto is_this = [&](const Backend& backend) { return &backend.connection == &connection; };
  const bool of_runtime = std::ranges::find_if(backends_, is_this)->way == Way::kRuntime;
  for (auto at = calls_.begin(); at != calls_.end();) {
    Call& call = *(at++)->second;  // losing it may take it out of calls_
    if (call.backend().connection() == &connection) {
      call.Lose(of_runtime ? kRuntimeLost : kHandlersLost);
    }
  }
}

void RoutedClient::Sweep() {
  for (auto at = backends_.begin(); at != backends_.end();) {
    if (at->connection.over()) {
      watcher_.Forget(at->connection);
      at = backends_.erase(at);
    } else {
      ++at;
    }
  }
}

void RoutedClient::GoAway() { connection_.GoAway(); }

}  // namespace stasis::cri
