#include "cri/proxy/router.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "cri/log.h"
#include "cri/proxy/routed_client.h"

namespace stasis::cri {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How long accept(2) rests when the process has no descriptor left (EMFILE), instead of spinning.
constexpr milliseconds kAcceptPause{100};

}  // namespace

// All of it belongs to one thread: between the arrival of bytes and what follows from them no thread is
// woken, which is what most of a short call's time would go into.
class Router::Loop final : public SocketWatcher {
 public:
  explicit Loop(RouterOptions options) : options_(std::move(options)) {}

  Status Open() {
    poll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
    wake_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!poll_ || !wake_) return SyscallError(errno, "epoll_create1, eventfd");
    // A thread that accepts may find that the client has gone meanwhile, and must not wait for the next.
    const int socket = options_.listener.socket.get();
    const int flags = ::fcntl(socket, F_GETFL);
    if (flags < 0 || ::fcntl(socket, F_SETFL, flags | O_NONBLOCK) != 0 ||
        !Control(EPOLL_CTL_ADD, wake_.get(), EPOLLIN, &wake_) ||
        !Control(EPOLL_CTL_ADD, socket, EPOLLIN, &options_)) {
      return SyscallError(errno, "watch the listening socket");
    }
    return OkStatus();
  }

  void Run();

  // From other threads.
  void Tell(std::function<void()> what) {
    {
      const std::lock_guard lock(mutex_);
      told_.push_back(std::move(what));
    }
    const std::uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));
  }

  // On its own thread.
  void StopListening() {
    if (!options_.listener.path.empty()) ::unlink(options_.listener.path.c_str());
    // epoll(7): watched for as long as anybody has it open, as systemd has.
    Control(EPOLL_CTL_DEL, options_.listener.socket.get(), 0, nullptr);
    options_.listener.socket.Reset();
  }
  void EndBy(steady_clock::time_point end) {
    end_ = end;
    for (RoutedClient& client : clients_) client.GoAway();
  }

 private:
  void Watch(Http2Connection& connection) override {
    Control(EPOLL_CTL_ADD, connection.fd(), EPOLLIN, &connection);
  }
  void Forget(Http2Connection& connection) override { std::erase(to_flush_, &connection); }
  void FlushSoon(Http2Connection& connection) override {
    if (!std::exchange(connection.flush_wanted, true)) to_flush_.push_back(&connection);
  }

  bool Control(int what, int fd, std::uint32_t events, void* of) {
    epoll_event event = {.events = events, .data = {.ptr = of}};
    return ::epoll_ctl(poll_.get(), what, fd, &event) == 0;
  }

  int Patience() const;
  void Happened(const epoll_event& event);
  void Listen();
  void Accept();
  void DoAsTold();
  void FlushAll();
  void Sweep();

  RouterOptions options_;
  UniqueFd poll_;
  UniqueFd wake_;
  std::mutex mutex_;
  std::vector<std::function<void()>> told_;  // guarded by mutex_
  std::vector<Http2Connection*> to_flush_;
  std::list<RoutedClient> clients_;
  bool resting_ = false;  // accept(2) does
  std::optional<steady_clock::time_point> end_;
};

void Router::Loop::Run() {
  std::array<epoll_event, 64> events;
  const auto done = [this] {
    const bool idle = std::ranges::all_of(clients_, &RoutedClient::idle);
    return end_ && (idle || steady_clock::now() >= *end_);
  };
  while (!done()) {
    const int count = ::epoll_wait(poll_.get(), events.data(), events.size(), Patience());
    if (count < 0 && errno != EINTR) break;
    if (count == 0 && resting_) Listen();
    for (int at = 0; at < count; ++at) Happened(events[static_cast<std::size_t>(at)]);
    FlushAll();
    Sweep();
  }
  clients_.clear();
}

int Router::Loop::Patience() const {
  constexpr int kEver = -1;
  int patience = resting_ ? static_cast<int>(kAcceptPause.count()) : kEver;
  if (end_) {
    const auto left = std::chrono::ceil<milliseconds>(*end_ - steady_clock::now()).count();
    const int until_end = static_cast<int>(std::max<std::int64_t>(left, 0));
    patience = patience == kEver ? until_end : std::min(patience, until_end);
  }
  return patience;
}

void Router::Loop::Happened(const epoll_event& event) {
  if (event.data.ptr == &wake_) return DoAsTold();
  if (event.data.ptr == &options_) return Accept();
  auto& connection = *static_cast<Http2Connection*>(event.data.ptr);
  if (connection.over()) return;  // by what happened before, in the same round
  if ((event.events & EPOLLOUT) != 0) FlushSoon(connection);
  if ((event.events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0) connection.Read();
}

void Router::Loop::DoAsTold() {
  std::uint64_t times = 0;
  (void)!::read(wake_.get(), &times, sizeof(times));
  std::vector<std::function<void()>> told;
  {
    const std::lock_guard lock(mutex_);
    told.swap(told_);
  }
  for (const auto& what : told) what();
}

void Router::Loop::Listen() {
  resting_ = false;
  if (options_.listener.socket) {
    Control(EPOLL_CTL_MOD, options_.listener.socket.get(), EPOLLIN, &options_);
  }
}

void Router::Loop::Accept() {
  const int socket =
      ::accept4(options_.listener.socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket >= 0) {
    clients_.emplace_back(UniqueFd(socket), options_, *this);
    if (end_) clients_.back().GoAway();
  } else if (const int error = errno; error == EMFILE || error == ENFILE || error == ENOMEM) {
    log::Warn("no connection can be accepted, waiting", {{"error", std::strerror(error)}});
    resting_ = true;
    Control(EPOLL_CTL_MOD, options_.listener.socket.get(), 0, &options_);
  }
}

// What is written to one connection gives room to others, and so on.
void Router::Loop::FlushAll() {
  while (!to_flush_.empty()) {
    std::vector<Http2Connection*> flushed;
    flushed.swap(to_flush_);
    for (Http2Connection* connection : flushed) {
      connection->flush_wanted = false;
      const bool was_blocked = connection->blocked();
      connection->Flush();
      if (connection->over() || connection->blocked() == was_blocked) continue;
      const std::uint32_t events = connection->blocked() ? EPOLLIN | EPOLLOUT : EPOLLIN;
      Control(EPOLL_CTL_MOD, connection->fd(), events, connection);
    }
  }
}

void Router::Loop::Sweep() {
  clients_.remove_if([](const RoutedClient& client) { return client.over(); });
  for (RoutedClient& client : clients_) client.Sweep();
}

Result<std::unique_ptr<Router>> Router::Start(RouterOptions options) {
  auto loop = std::make_unique<Loop>(std::move(options));
  RETURN_IF_ERROR(loop->Open());
  return std::unique_ptr<Router>(new Router(std::move(loop)));
}

Router::Router(std::unique_ptr<Loop> loop)
    : loop_(std::move(loop)), thread_([raw = loop_.get()] { raw->Run(); }) {}

Router::~Router() {
  StopListening();
  Shutdown(milliseconds(0));
}

void Router::StopListening() {
  loop_->Tell([raw = loop_.get()] { raw->StopListening(); });
}

void Router::Shutdown(milliseconds grace) {
  if (!thread_.joinable()) return;
  loop_->Tell([raw = loop_.get(), end = steady_clock::now() + grace] { raw->EndBy(end); });
  thread_.join();
}

}  // namespace stasis::cri
