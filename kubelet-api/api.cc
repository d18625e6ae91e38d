#include "kubelet-api/api.h"

#include <cpprest/details/http_server_api.h>
#include <cpprest/http_listener.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "cri/log.h"
#include "kubelet-api/client_threads.h"
#include "kubelet-api/routes.h"
#include "kubelet-api/transport/http_server.h"

namespace stasis::kubelet_api {
namespace {

using web::http::experimental::details::http_server_api;
using web::http::experimental::listener::http_listener;

constexpr int kBacklog = 64;

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24 == 127;
  }
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

Result<UniqueFd> ListeningSocket(const addrinfo& at, const std::string& where) {
  UniqueFd socket(::socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int yes = 1, no = 0;
  // Not left to net.ipv6.bindv6only: [::] means IPv4, too (ipv6(7), IPV6_V6ONLY).
  if (!socket || ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      (at.ai_family == AF_INET6 &&
       ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)) != 0) ||
      ::bind(socket.get(), at.ai_addr, at.ai_addrlen) != 0 ||
      ::listen(socket.get(), kBacklog) != 0) {
    const int error = errno;
    return SyscallError(error, "listen at " + where);
  }
  return socket;
}

Result<UniqueFd> ListenAt(const std::string& where, bool loopback_only) {
  const std::size_t colon = where.rfind(':');
  if (colon == std::string::npos) {
    return InvalidArgument("--api-listen " + where + " is not ADDRESS:PORT");
  }
  std::string host = where.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  const std::string port = where.substr(colon + 1);
  // Without an address: all of both families by one socket, or those of IPv4 where there is no IPv6.
  std::vector<std::string> hosts = {host};
  if (host.empty()) hosts = {"::", "0.0.0.0"};
  Result<UniqueFd> socket = InvalidArgument("");
  for (const std::string& one : hosts) {
    addrinfo* found = nullptr;
    if (::getaddrinfo(one.c_str(), port.c_str(), &hints, &found) != 0) {
      return InvalidArgument("--api-listen " + where + " is not ADDRESS:PORT, both as numbers");
    }
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> freed(found, &::freeaddrinfo);
    if (loopback_only && !IsLoopback(found->ai_addr)) {
      return InvalidArgument("the REST API is served on " + where +
                             " only with TLS (--api-tls-cert, --api-tls-key); use 127.0.0.1");
    }
    socket = ListeningSocket(*found, where);
    const int error = ErrnoOf(socket.status());
    if (error != EAFNOSUPPORT && error != EADDRNOTAVAIL) return socket;
  }
  return socket;
}

Status CheckOptions(const ApiOptions& options) {
  const TlsFiles& tls = options.tls;
  if (tls.certificate.empty() != tls.key.empty()) {
    return InvalidArgument("--api-tls-cert and --api-tls-key belong together");
  }
  if (!tls.client_ca.empty() && tls.certificate.empty()) {
    return InvalidArgument("--api-client-ca needs TLS: --api-tls-cert and --api-tls-key");
  }
  RETURN_IF_ERROR(ImagePusher::Check(options.push));
  return CheckApiServer(options.api_server);
}

class RunningApi : public Api {
 public:
  RunningApi(const ApiOptions& options, cri::Agent& agent)
      : folder_(options.checkpoint_dir),
        access_(options.api_server, !options.tls.client_ca.empty()),
        pusher_(options.push),
        routes_(agent, access_, folder_, pusher_, options.of_a_user),
        listener_(web::uri("http://localhost/")) {}

  ~RunningApi() override { End(std::chrono::milliseconds(0)); }

  void Open(UniqueFd socket, std::unique_ptr<Tls> tls) {
    auto server = std::make_unique<HttpServer>(std::move(socket), std::move(tls), ServerLimits{});
    server_ = server.get();
    http_server_api::register_server_api(std::move(server));
    const auto handle = [this](const web::http::http_request& request) { routes_.Handle(request); };
    listener_.support(handle);
    // Else cpprestsdk answers these itself, to anybody.
    for (const auto& method : {web::http::methods::OPTIONS, web::http::methods::TRCE}) {
      listener_.support(method, handle);
    }
    listener_.open().wait();
  }

  void Shutdown(std::chrono::milliseconds grace) override { End(grace); }

 private:
  void End(std::chrono::milliseconds grace) noexcept {
    if (server_ == nullptr) return;
    try {
      std::exchange(server_, nullptr)->Shutdown(grace);
      listener_.close().wait();
      http_server_api::unregister_server_api();
    } catch (const std::exception& error) {  // cpprestsdk's
      log::Warn("the REST API did not end in order, ignoring", {{"reason", error.what()}});
    }
  }

  const CheckpointFolder folder_;
  Access access_;
  ImagePusher pusher_;
  Routes routes_;
  http_listener listener_;
  HttpServer* server_ = nullptr;  // cpprestsdk has it
};

}  // namespace

Status CheckApiServer(const ApiServerOptions& options) {
  if (options.url.empty()) return OkStatus();
  if (!options.url.starts_with("https://")) {
    return InvalidArgument("--api-server " + options.url + " is not an https:// address");
  }
  if (options.ca_file.empty() || options.token_file.empty()) {
    return InvalidArgument("--api-server needs --api-server-ca and --api-server-token-file");
  }
  return OkStatus();
}

Result<std::unique_ptr<Api>> Api::Start(const ApiOptions& options, cri::Agent& agent) {
  RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<Tls> tls;
  if (!options.tls.certificate.empty()) {
    ASSIGN_OR_RETURN(tls, Tls::Load(options.tls));
  }
  ASSIGN_OR_RETURN(UniqueFd socket, ListenAt(options.listen, tls == nullptr));
  try {
    StartClientThreads();
    auto api = std::make_unique<RunningApi>(options, agent);
    api->Open(std::move(socket), std::move(tls));
    return std::unique_ptr<Api>(std::move(api));
  } catch (const std::exception& error) {
    return Internal(std::string("start the REST API: ") + error.what());
  }
}

}  // namespace stasis::kubelet_api
