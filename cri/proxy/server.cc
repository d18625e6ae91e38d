#include "cri/proxy/server.h"

#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "cri/log.h"
#include "cri/proxy/limits.h"

namespace stasis::cri {
namespace {

// For calls that are given up to put everything back and to say so.
constexpr auto kGivingUp = std::chrono::seconds(2);
// For answers that are on their way when the server ends.
constexpr auto kLastAnswers = std::chrono::milliseconds(200);

}  // namespace

// What the next call to the server becomes.
class Server::Arrival final : public Event {
 public:
  explicit Arrival(Server& server) : server_(server) {}

  void Happened(bool ok) override {
    if (ok) {
      new Arrival(server_);  // for the one after it; deletes itself
      server_.Take(std::move(client_));
    }
    delete this;
  }

 private:
  Server& server_;
  std::unique_ptr<ClientEnd> client_ =
      std::make_unique<ClientEnd>(server_.service_, *server_.queue_, *this);
};

Result<std::unique_ptr<Server>> Server::Start(Listener listener, Upstream& upstream,
                                              MethodTable table,
                                              std::atomic<std::uint64_t>& forwarded) {
  std::unique_ptr<Server> server(new Server(std::move(table)));
  RETURN_IF_ERROR(server->ServeHandlers());
  ASSIGN_OR_RETURN(
      server->router_,
      Router::Start({.listener = std::move(listener),
                     .to_runtime = [&upstream] { return ConnectTo(upstream.path()); },
                     .to_handlers = [raw = server.get()] { return raw->ConnectToHandlers(); },
                     .table = server->table_,
                     .forwarded = forwarded}));
  return server;
}

Status Server::ServeHandlers() {
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kUnlimitedMessage);
  builder.SetMaxSendMessageSize(kUnlimitedMessage);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.RegisterAsyncGenericService(&service_);
  queue_ = builder.AddCompletionQueue();
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) return Internal("the gRPC server does not start");
  new Arrival(*this);  // deletes itself
  events_ = std::thread([this] { Serve(); });
  return OkStatus();
}

Result<UniqueFd> Server::ConnectToHandlers() {
  if (no_more_) return Unavailable("stasisd on this node ends; ask again when it is back");
  int ends[2] = {};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) {
    const int error = errno;
    return SyscallError(error, "socketpair");
  }
  grpc::AddInsecureChannelFromFd(server_.get(), ends[1]);  // owns it from here on
  return UniqueFd(ends[0]);
}

Server::~Server() { Shutdown(std::chrono::milliseconds(0)); }

void Server::Serve() {
  void* event = nullptr;
  bool ok = false;
  while (queue_->Next(&event, &ok)) static_cast<Event*>(event)->Happened(ok);
}

void Server::Take(std::unique_ptr<ClientEnd> client) {
  const auto handler = table_.handlers.find(client->context.method());  // the router sends no other
  if (handler == table_.handlers.end()) return client.release()->context.TryCancel();
  StartHandler(std::move(client), handler->second, handled_, calls_, ending_.get_token());
}

void Server::Shutdown(std::chrono::milliseconds grace) {
  if (std::exchange(shut_down_, true)) return;
  if (router_) router_->StopListening();
  if (server_ == nullptr) return;
  constexpr auto kNoLimit = std::chrono::steady_clock::time_point::max();
  if (!handled_.WaitUntilNone(std::chrono::steady_clock::now() + grace)) {
    log::Warn("checkpoints and restores under way are given up");
    ending_.request_stop();
    handled_.WaitUntilNone(std::chrono::steady_clock::now() + kGivingUp);
  }
  no_more_ = true;
  server_->Shutdown(std::chrono::system_clock::now() + kLastAnswers);
  server_->Wait();
  if (router_) router_->Shutdown(kLastAnswers);
  // A handler whose call was cut has its answer yet to begin, which it may not on a queue that is shut down.
  calls_.WaitUntilNone(kNoLimit);
  queue_->Shutdown();
  events_.join();
}

}  // namespace stasis::cri
