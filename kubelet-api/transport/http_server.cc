#include "kubelet-api/transport/http_server.h"

#include <arpa/inet.h>
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
#include <cstring>
#include <utility>

#include "cri/log.h"

namespace stasis::kubelet_api {
namespace {

namespace beast = boost::beast;
namespace http = web::http;
using std::chrono::steady_clock;
using Parser = beast::http::request_parser<beast::http::string_body>;

constexpr auto kAcceptPause = std::chrono::milliseconds(100);
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

std::string AddressText(const sockaddr_storage& peer) {
  char text[INET6_ADDRSTRLEN] = {};
  if (peer.ss_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr, text,
                sizeof(text));
  } else {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(peer).sin_addr, text, sizeof(text));
  }
  return text;
}

// Throws what cpprestsdk throws of a target that is no URI.
http::http_request ToRequest(const Parser::value_type& from, Exchange& exchange,
                             const std::string& address) {
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
  const std::string reason = response.reason_phrase();
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

HttpServer::HttpServer(UniqueFd socket, std::unique_ptr<Tls> tls, const ServerLimits& limits)
    : socket_(std::move(socket)),
      wake_(::eventfd(0, EFD_CLOEXEC)),
      tls_(std::move(tls)),
      limits_(limits) {}

HttpServer::~HttpServer() { Shutdown(std::chrono::milliseconds(0)); }

pplx::task<void> HttpServer::start() { return pplx::task_from_result(); }

pplx::task<void> HttpServer::stop() {
  Shutdown(std::chrono::milliseconds(0));
  return pplx::task_from_result();
}

pplx::task<void> HttpServer::register_listener(Listener* listener) {
  {
    const std::lock_guard lock(mutex_);
    listener_ = listener;
  }
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
    if (!socket) {
      std::this_thread::sleep_for(kAcceptPause);  // EMFILE and the like do not end by themselves
      continue;
    }
    std::string address = AddressText(peer);
    if (!Admit(address, socket.get())) continue;  // closed: a client tries again
    std::thread([this, address, held = std::move(socket)]() mutable {
      Serve(std::move(held), address);
    }).detach();
  }
}

bool HttpServer::Admit(const std::string& address, int fd) {
  const std::lock_guard lock(mutex_);
  int& count = by_address_[address];
  if (ending_ || static_cast<int>(busy_.size()) >= limits_.connections ||
      count >= limits_.connections_an_address) {
    if (count == 0) by_address_.erase(address);
    log::Debug("connection refused, there are too many", {{"client", address}});
    return false;
  }
  ++count;
  busy_[fd] = false;
  return true;
}

void HttpServer::Serve(UniqueFd socket, const std::string& address) {
  BlockSigpipe();
  const int fd = socket.get();
  try {
    const Tls::Context tls = tls_ ? tls_->Current() : nullptr;
    const auto connection =
        Connection::Open(std::move(socket), tls.get(), steady_clock::now() + limits_.request_time);
    if (connection.ok()) {
      while (ServeOne(**connection, address)) {
      }
      ::shutdown(fd, SHUT_WR);
    } else {
      log::Debug("connection not made",
                 {{"client", address}, {"reason", ToText(connection.status())}});
    }
    const std::lock_guard lock(mutex_);
    busy_.erase(fd);  // before the number is free for another
  } catch (const std::exception& error) {
    log::Warn("a connection of the REST API ended",
              {{"client", address}, {"reason", error.what()}});
    const std::lock_guard lock(mutex_);
    busy_.erase(fd);
  }
  const std::lock_guard lock(mutex_);
  if (--by_address_[address] == 0) by_address_.erase(address);
  changed_.notify_all();  // the last that is touched of this
}

bool HttpServer::ServeOne(Connection& connection, const std::string& address) {
  if (!connection.WaitForInput(steady_clock::now() + limits_.idle_time)) return false;
  connection.set_read_deadline(steady_clock::now() + limits_.request_time);
  Parser parser;
  parser.header_limit(limits_.header_bytes);
  parser.body_limit(limits_.body_bytes);
  beast::flat_buffer buffer(limits_.header_bytes + limits_.body_bytes);
  beast::error_code error;
  beast::http::read_header(connection, buffer, parser, error);
  if (error == beast::http::error::header_limit) {
    return AnswerPlainly(connection, 431, "the request's header is too large");
  }
  if (!error && parser.get().count(beast::http::field::expect) != 0) {
    return AnswerPlainly(connection, 417, "send the request without Expect");
  }
  if (!error) beast::http::read(connection, buffer, parser, error);
  if (error == beast::http::error::body_limit) {
    return AnswerPlainly(connection, 413, "the request's body is too large");
  }
  if (error == boost::asio::error::timed_out) {
    return AnswerPlainly(connection, 408, "the request did not come in time");
  }
  if (error == beast::http::error::end_of_stream || error == boost::asio::error::eof) return false;
  if (error) return AnswerPlainly(connection, 400, "this is no HTTP request");

  Exchange exchange;
  exchange.certificate = connection.Subject();
  exchange.socket = connection.fd();
  exchange.stop = stop_.get_token();
  std::future<http::http_response> answer = exchange.response.get_future();
  Listener* listener = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return false;
    listener = listener_;
    busy_[connection.fd()] = true;
  }
  const bool keep = parser.get().keep_alive();
  const bool head = parser.get().method() == beast::http::verb::head;
  try {
    listener->handle_request(ToRequest(parser.get(), exchange, address));
  } catch (const web::uri_exception&) {
    return AnswerPlainly(connection, 400, "this is no path");
  }
  const bool goes_on = Answer(connection, exchange, answer.get(), keep, head);
  const std::lock_guard lock(mutex_);
  busy_[connection.fd()] = false;
  changed_.notify_all();
  return goes_on && !ending_;
}

bool HttpServer::Answer(Connection& connection, Exchange& exchange, http::http_response response,
                        bool keep, bool head) {
  const auto deadline = [this] { return steady_clock::now() + limits_.write_time; };
  const std::string body = exchange.file ? std::string() : BodyOf(response);
  const std::uint64_t size = exchange.file ? exchange.file_size : body.size();
  std::string text = HeaderText(response, size, keep);
  if (!head) text += body;
  if (!connection.Write(text.data(), text.size(), deadline()).ok()) return false;
  if (!exchange.file || head) return keep;
  std::string piece(kPiece, '\0');
  for (std::uint64_t at = 0; at < size;) {
    const ssize_t got =
        ::pread(exchange.file.get(), piece.data(), std::min<std::uint64_t>(kPiece, size - at),
                static_cast<off_t>(exchange.file_offset + at));
    if (got <= 0) return false;  // cut short: the client sees it by the length
    const auto count = static_cast<std::size_t>(got);
    if (stop_.stop_requested() || !connection.Write(piece.data(), count, deadline()).ok()) {
      return false;
    }
    at += count;
  }
  return keep;
}

bool HttpServer::AnswerPlainly(Connection& connection, int code, const char* text) {
  http::http_response response(static_cast<http::status_code>(code));
  response.set_body(std::string(text) + "\n", "text/plain; charset=utf-8");
  Exchange none;
  Answer(connection, none, response, false, false);
  return false;
}

void HttpServer::Shutdown(std::chrono::milliseconds grace) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(ending_, true)) return;
  }
  if (acceptor_.joinable()) {
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
    acceptor_.join();
  }
  std::unique_lock lock(mutex_);
  const auto nobody_is_served = [this] {
    return std::ranges::none_of(busy_, [](const auto& one) { return one.second; });
  };
  changed_.wait_for(lock, grace, nobody_is_served);
  lock.unlock();
  stop_.request_stop();
  lock.lock();
  for (const auto& [fd, busy] : busy_) ::shutdown(fd, busy ? SHUT_RD : SHUT_RDWR);
  changed_.wait(lock, [this] { return by_address_.empty(); });
}

}  // namespace stasis::kubelet_api
