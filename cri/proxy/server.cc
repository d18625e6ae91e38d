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
  builder.RegisterCallbackGenericService(&handlers_);
  server_ = builder.BuildAndStart();
  return server_ != nullptr ? OkStatus() : Internal("the gRPC server does not start");
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

void Server::Shutdown(std::chrono::milliseconds grace) {
  if (std::exchange(shut_down_, true)) return;
  if (router_) router_->StopListening();
  if (server_ == nullptr) return;
  if (!handlers_.WaitUntilNone(std::chrono::steady_clock::now() + grace)) {
    log::Warn("checkpoints and restores under way are given up");
    handlers_.GiveUp();
    handlers_.WaitUntilNone(std::chrono::steady_clock::now() + kGivingUp);
  }
  no_more_ = true;
  server_->Shutdown(std::chrono::system_clock::now() + kLastAnswers);
  server_->Wait();
  if (router_) router_->Shutdown(kLastAnswers);
}

}  // namespace stasis::cri
