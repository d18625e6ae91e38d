// The protocol is of five lines and a promise of systemd's (sd_notify(3), "Notes"); its library would bring six
// others into the release that nodes get.
//
// The watchdog asks as the kubelet asks: a new connection, the listener, the relay, the runtime. A runtime that
// hangs makes the same silence, so it is asked without us before silence is held against the agent.
#include "cmd/stasisd/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

#include "cri/client.h"
#include "cri/log.h"
#include "engine/base/unique_fd.h"

namespace stasis {
namespace {

constexpr int kSystemdFirstFd = 3;  // SD_LISTEN_FDS_START, sd_listen_fds(3)

long EnvironmentNumber(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::strtol(text, nullptr, 10);
}

std::optional<std::chrono::microseconds> WatchdogTime() {
  const long pid = EnvironmentNumber("WATCHDOG_PID"), time = EnvironmentNumber("WATCHDOG_USEC");
  if (time <= 0 || (pid != 0 && pid != ::getpid())) return std::nullopt;
  return std::chrono::microseconds(time);
}

enum class Answer { kYes, kNotByUs, kNotByTheRuntime };

Answer Ask(const Watched& watched, std::chrono::microseconds patience,
           const std::stop_token& stop) {
  if (cri::RuntimeVersionAt(watched.served, patience, stop).ok()) return Answer::kYes;
  return cri::RuntimeVersionAt(watched.runtime, patience, stop).ok() ? Answer::kNotByUs
                                                                     : Answer::kNotByTheRuntime;
}

void Watch(const std::stop_token& stop, const Watched& watched, std::chrono::microseconds every) {
  std::mutex mutex;
  std::condition_variable_any ended;
  std::unique_lock lock(mutex);
  Answer last = Answer::kYes;
  while (!stop.stop_requested()) {
    const Answer now = Ask(watched, every, stop);
    if (stop.stop_requested()) return;
    if (now != Answer::kNotByUs) Notify("WATCHDOG=1");
    if (now == Answer::kNotByUs) {
      log::Error("stasisd does not pass calls on, while the runtime answers",
                 {{"at", watched.served}});
    } else if (now == Answer::kNotByTheRuntime && now != last) {
      log::Warn("the container runtime does not answer", {{"runtime", watched.runtime}});
    }
    last = now;
    (void)ended.wait_for(lock, stop, every,
                         [] { return false; });  // until the time is up, or `stop`
  }
}

}  // namespace

void Notify(const std::string& assignment) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || *path == '\0' || std::strlen(path) >= sizeof(address.sun_path)) return;
  const std::size_t size = std::strlen(path);
  std::memcpy(address.sun_path, path, size);
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';  // an abstract name, unix(7)
  const UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  // What cannot be told is of no use to us either.
  (void)::sendto(socket.get(), assignment.data(), assignment.size(), MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&address),
                 static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size));
}

std::string ServedEndpoint(const std::string& listen) {
  if (EnvironmentNumber("LISTEN_PID") != ::getpid() || EnvironmentNumber("LISTEN_FDS") < 1) {
    return listen;
  }
  sockaddr_un address{};
  socklen_t size = sizeof(address);
  if (::getsockname(kSystemdFirstFd, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      address.sun_family != AF_UNIX || address.sun_path[0] != '/') {
    return listen;
  }
  return "unix://" +
         std::string(address.sun_path, ::strnlen(address.sun_path, sizeof(address.sun_path)));
}

std::jthread StartWatchdog(Watched watched) {
  const auto time = WatchdogTime();
  if (!time) return {};
  return std::jthread([watched = std::move(watched), every = *time / 4](
                          const std::stop_token& stop) { Watch(stop, watched, every); });
}

}  // namespace stasis
