#include "cri/proxy/server.h"

#include <absl/synchronization/mutex.h>
#include <fcntl.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "cri/log.h"
#include "cri/proxy/limits.h"
#include "cri/proxy/relay.h"
#include "cri/proxy/unary_relay.h"

namespace stasis::cri {
namespace {

// How long accept(2) rests when the process has no descriptor left (EMFILE), instead of spinning.
constexpr auto kAcceptPause = std::chrono::milliseconds(100);
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

Server::Server(Listener listener, Upstream& upstream, MethodTable table,
               std::atomic<std::uint64_t>& forwarded)
    : listener_(std::move(listener)),
      upstream_(upstream),
      table_(std::move(table)),
      forwarded_(forwarded) {}

Result<std::unique_ptr<Server>> Server::Start(Listener listener, Upstream& upstream,
                                              MethodTable table,
                                              std::atomic<std::uint64_t>& forwarded) {
  std::unique_ptr<Server> server(
      new Server(std::move(listener), upstream, std::move(table), forwarded));
  server->wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (!server->wake_) {
    const int error = errno;
    return SyscallError(error, "eventfd");
  }
  // Debian's abseil looks for lock cycles at each lock that gRPC takes (GraphCycles), a part of every call.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kUnlimitedMessage);
  builder.SetMaxSendMessageSize(kUnlimitedMessage);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.RegisterAsyncGenericService(&server->service_);
  server->queue_ = builder.AddCompletionQueue();
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr) return Internal("the gRPC server does not start");

  new Arrival(*server);  // deletes itself
  server->events_ = std::thread([raw = server.get()] { raw->Serve(); });
  server->acceptor_ = std::thread([raw = server.get()] { raw->Accept(); });
  return server;
}

Server::~Server() { Shutdown(std::chrono::milliseconds(0)); }

void Server::Serve() {
  void* event = nullptr;
  bool ok = false;
  while (queue_->Next(&event, &ok)) static_cast<Event*>(event)->Happened(ok);
}

void Server::Take(std::unique_ptr<ClientEnd> client) {
  const std::string& method = client->context.method();
  if (const auto handler = table_.handlers.find(method); handler != table_.handlers.end()) {
    StartHandler(std::move(client), handler->second, handled_, calls_, ending_.get_token());
    return;
  }
  forwarded_.fetch_add(1, std::memory_order_relaxed);
  static const RelayFilters kNone;
  const auto found = table_.filters.find(method);
  const Forwarding to{upstream_.any(), *queue_,
                      found == table_.filters.end() ? kNone : found->second, calls_};
  (IsUnary(method) ? StartUnaryRelay : StartRelay)(std::move(client), to);
}

// We accept ourselves: gRPC can take neither a socket from systemd nor one with a mode.
void Server::Accept() {
  pollfd waiting[2] = {{listener_.socket.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  while (true) {
    if (::poll(waiting, 2, -1) < 0 && errno != EINTR) return;
    if (waiting[1].revents != 0) return;
    if (waiting[0].revents == 0) continue;
    const int connection =
        ::accept4(listener_.socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection >= 0) {
      grpc::AddInsecureChannelFromFd(server_.get(), connection);  // owns it from here on
    } else if (const int error = errno; error == EMFILE || error == ENFILE || error == ENOMEM) {
      log::Warn("no connection can be accepted, waiting", {{"error", std::strerror(error)}});
      std::this_thread::sleep_for(kAcceptPause);
    }
  }
}

void Server::Shutdown(std::chrono::milliseconds grace) {
  if (std::exchange(shut_down_, true)) return;
  if (acceptor_.joinable()) {
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
    acceptor_.join();
  }
  if (!listener_.path.empty()) ::unlink(listener_.path.c_str());
  listener_.socket.Reset();
  if (server_ == nullptr) return;
  constexpr auto kNoLimit = std::chrono::steady_clock::time_point::max();
  if (!handled_.WaitUntilNone(std::chrono::steady_clock::now() + grace)) {
    log::Warn("checkpoints and restores under way are given up");
    ending_.request_stop();
    handled_.WaitUntilNone(std::chrono::steady_clock::now() + kGivingUp);
  }
  server_->Shutdown(std::chrono::system_clock::now() + kLastAnswers);
  server_->Wait();
  // Calls that were cut have operations under way to the runtime, and a handler its answer: none may begin
  // one on a queue that is shut down.
  calls_.WaitUntilNone(kNoLimit);
  queue_->Shutdown();
  events_.join();
}

}  // namespace stasis::cri
