#include "kubelet-api/transport/http_server.h"

#include <cpprest/http_listener.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cerrno>
#include <utility>

#include "cri/log.h"

namespace stasis::kubelet_api {
namespace {

namespace beast = boost::beast;
namespace http = web::http;
using std::chrono::steady_clock;
using Parser = beast::http::request_parser<beast::http::string_body>;

constexpr auto kAcceptPause = std::chrono::milliseconds(100);
constexpr auto kLastAnswerTime = std::chrono::milliseconds(1000);
constexpr std::size_t kPiece = std::size_t{64} << 10;

struct Context : http::details::_http_server_context {
  explicit Context(Exchange& exchange) : of(exchange) {}
  Exchange& of;
};

// OpenSSL writes by write(2), without MSG_NOSIGNAL: a client that hangs up would end the agent. Of this thread
// alone, since a disposition would pass on to programs.
void BlockSigpipe() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

// Throws what cpprestsdk throws of a target that is no URI.
http::http_request ToRequest(const Request& from, Exchange& exchange, const std::string& address) {
  http::http_request request =
      http::http_request::_create_request(std::make_unique<Context>(exchange));
  request.set_method(std::string(from.method_string()));
  const std::string target(from.target());
  if (!target.starts_with('/')) throw web::uri_exception("not a path");
  request.set_request_uri(web::uri(target));
  for (const auto& field : from) {
    request.headers().add(std::string(field.name_string()), std::string(field.value()));
  }
  request._get_impl()->_set_listener_path("/");
  request._get_impl()->_set_remote_address(address);
  return request;
}

std::string HeaderText(const http::http_response& response, std::uint64_t size, bool keep) {
  const std::string& reason = response.reason_phrase();
  std::string text =
      "HTTP/1.1 " + std::to_string(response.status_code()) + " " +
      (reason.empty() ? http::http_response(response.status_code()).reason_phrase() : reason) +
      "\r\n";
  for (const auto& [name, value] : response.headers()) {
    if (name == "Content-Length") continue;
    text += name + ": " + value + "\r\n";
  }
  text += "Content-Length: " + std::to_string(size) + "\r\n";
  text +=
      std::string("Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: ") +
      (keep ? "keep-alive" : "close") + "\r\n\r\n";
  return text;
}

std::string BodyOf(http::http_response& response) {
  if (!response.body()) return {};
  concurrency::streams::container_buffer<std::string> text;
  response.body().read_to_end(text).get();
  return std::move(text.collection());
}

}  // namespace

Exchange& ExchangeOf(const http::http_request& request) {
  return static_cast<Context*>(request._get_server_context())->of;
}

/// A connection while it is served.
struct HttpServer::Session {
  const Connections::Id id;
  const Peer& peer;
  Connection& connection;
  beast::flat_buffer buffer;  // what was read and belongs to the next request
  const steady_clock::time_point begin = steady_clock::now();
  bool known = false;
};

HttpServer::HttpServer(UniqueFd socket, std::unique_ptr<Tls> tls, const ServerLimits& limits)
    : socket_(std::move(socket)),
      wake_(::eventfd(0, EFD_CLOEXEC)),
      tls_(std::move(tls)),
      limits_(limits),
      connections_(limits.connections, limits.connections_an_address) {}

HttpServer::~HttpServer() { Shutdown(std::chrono::milliseconds(0)); }

pplx::task<void> HttpServer::start() { return pplx::task_from_result(); }

pplx::task<void> HttpServer::stop() {
  Shutdown(std::chrono::milliseconds(0));
  return pplx::task_from_result();
}

pplx::task<void> HttpServer::register_listener(Listener* listener) {
  listener_ = listener;
  acceptor_ = std::thread([this] { Accept(); });
  return pplx::task_from_result();
}

pplx::task<void> HttpServer::unregister_listener(Listener*) { return stop(); }

pplx::task<void> HttpServer::respond(http::http_response response) {
  static_cast<Context*>(response._get_server_context())->of.response.set_value(response);
  return pplx::task_from_result();
}

void HttpServer::Accept() {
  pollfd waiting[2] = {{socket_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  while (true) {
    if (::poll(waiting, 2, -1) < 0 && errno != EINTR) return;
    if (waiting[1].revents != 0) return;
    if (waiting[0].revents == 0) continue;
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    UniqueFd socket(::accept4(socket_.get(), reinterpret_cast<sockaddr*>(&peer), &size,
                              SOCK_CLOEXEC | SOCK_NONBLOCK));
    try {
      if (socket) {
        Welcome(std::move(socket), PeerOf(peer));
        continue;
      }
    } catch (const std::exception& error) {  // no memory, no thread
      log::Warn("a connection to the REST API is not served, ignoring", {{"reason", error.what()}});
    }
    std::this_thread::sleep_for(
        kAcceptPause);  // these, EMFILE and the like do not end by themselves
  }
}

void HttpServer::Welcome(UniqueFd socket, const Peer& peer) {
  const std::optional<Connections::Id> id = connections_.Admit(std::move(socket), peer.network);
  if (!id) {
    log::Debug("connection refused, there are too many", {{"client", peer.address}});
    return;  // closed: a client tries again
  }
  try {
    std::thread([this, id = *id, peer] { Serve(id, peer); }).detach();
  } catch (...) {
    connections_.Remove(*id);
    throw;
  }
}

void HttpServer::Serve(Connections::Id id, const Peer& peer) {
  BlockSigpipe();
  try {
    const int fd = connections_.SocketOf(id);
    const Tls::Context tls = tls_ ? tls_->Current() : nullptr;
    const auto connection =
        Connection::Open(fd, tls.get(), steady_clock::now() + limits_.request_time);
    if (connection.ok()) {
      Session session = {.id = id,
                         .peer = peer,
                         .connection = **connection,
                         .buffer = beast::flat_buffer(limits_.header_bytes + limits_.body_bytes),
                         .known = (*connection)->Subject().has_value()};
      if (session.known) connections_.Know(id);
      while (ServeOne(session)) {
      }
      ::shutdown(fd, SHUT_WR);
    } else {
      log::Debug("connection not made",
                 {{"client", peer.address}, {"reason", ToText(connection.status())}});
    }
  } catch (const std::exception& error) {
    log::Warn("a connection of the REST API ended",
              {{"client", peer.address}, {"reason", error.what()}});
  }
  connections_.Remove(id);  // the last that is touched of this
}

bool HttpServer::ServeOne(Session& session) {
  Connection& connection = session.connection;
  const auto begin = steady_clock::now();
  if (session.buffer.size() == 0 &&
      !connection.WaitForInput(begin +
                               (session.known ? limits_.idle_time : limits_.request_time))) {
    return false;
  }
  // Who is not known has one time for both: a stranger's silence holds a place that another needs.
  connection.set_read_deadline((session.known ? steady_clock::now() : begin) +
                               limits_.request_time);
  Parser parser;
  parser.header_limit(limits_.header_bytes);
  parser.body_limit(limits_.body_bytes);
  beast::error_code error;
  beast::http::read_header(connection, session.buffer, parser, error);
  if (error == beast::http::error::header_limit) {
    return AnswerPlainly(session, 431, "the request's header is too large");
  }
  if (!error && parser.get().count(beast::http::field::expect) != 0) {
    return AnswerPlainly(session, 417, "send the request without Expect");
  }
  if (!error) beast::http::read(connection, session.buffer, parser, error);
  if (error == beast::http::error::body_limit) {
    return AnswerPlainly(session, 413, "the request's body is too large");
  }
  if (error == boost::asio::error::timed_out) {
    return AnswerPlainly(session, 408, "the request did not come in time");
  }
  if (error == beast::http::error::end_of_stream || error == boost::asio::error::eof) return false;
  if (error) return AnswerPlainly(session, 400, "this is no HTTP request");
  return Handle(session, parser.get());
}

bool HttpServer::Handle(Session& session, const Request& from) {
  if (!connections_.BeginRequest(session.id)) return false;
  Exchange exchange;
  exchange.certificate = session.connection.Subject();
  exchange.network = session.peer.network;
  exchange.socket = session.connection.fd();
  exchange.stop = stop_.get_token();
  std::future<http::http_response> answer = exchange.response.get_future();
  const bool keep =
      from.keep_alive() && steady_clock::now() < session.begin + limits_.connection_time;
  try {
    listener_.load()->handle_request(ToRequest(from, exchange, session.peer.address));
  } catch (const web::uri_exception&) {
    return AnswerPlainly(session, 400, "this is no path");
  }
  http::http_response response = answer.get();
  if (exchange.authenticated && !std::exchange(session.known, true)) connections_.Know(session.id);
  connections_.BeginAnswer(session.id, stop_.stop_requested());
  const bool goes_on = Answer(session, exchange, std::move(response), keep,
                              from.method() == beast::http::verb::head);
  return connections_.EndRequest(session.id) && goes_on;
}

steady_clock::time_point HttpServer::WriteDeadline() const {
  return steady_clock::now() + (stop_.stop_requested() ? kLastAnswerTime : limits_.write_time);
}

bool HttpServer::Answer(Session& session, Exchange& exchange, http::http_response response,
                        bool keep, bool head) {
  Connection& connection = session.connection;
  const std::string body = exchange.file ? std::string() : BodyOf(response);
  const std::uint64_t size = exchange.file ? exchange.file_size : body.size();
  std::string text = HeaderText(response, size, keep);
  if (!head) text += body;
  if (!connection.Write(text.data(), text.size(), WriteDeadline()).ok()) return false;
  if (!exchange.file || head) return keep;
  std::string piece(kPiece, '\0');
  for (std::uint64_t at = 0; at < size;) {
    const ssize_t got =
        ::pread(exchange.file.get(), piece.data(), std::min<std::uint64_t>(kPiece, size - at),
                static_cast<off_t>(exchange.file_offset + at));
    if (got <= 0) return false;  // cut short: the client sees it by the length
    const auto count = static_cast<std::size_t>(got);
    if (stop_.stop_requested() || !connection.Write(piece.data(), count, WriteDeadline()).ok()) {
      return false;
    }
    at += count;
  }
  return keep;
}

bool HttpServer::AnswerPlainly(Session& session, int code, const char* text) {
  http::http_response response(static_cast<http::status_code>(code));
  response.set_body(std::string(text) + "\n", "text/plain; charset=utf-8");
  Exchange none;
  Answer(session, none, response, false, false);
  return false;
}

void HttpServer::Shutdown(std::chrono::milliseconds grace) {
  if (ended_.exchange(true)) return;
  if (acceptor_.joinable()) {
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
    acceptor_.join();
  }
  // Who is connected and was not accepted would wait for as long as we take: this resets them, and refuses others.
  ::shutdown(socket_.get(), SHUT_RDWR);
  connections_.End(grace);
  stop_.request_stop();
  connections_.Cut();
}

}  // namespace stasis::kubelet_api
