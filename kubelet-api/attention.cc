#include "kubelet-api/attention.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>

namespace stasis::kubelet_api {

Attention::Attention(const Exchange& exchange)
    : done_(::eventfd(0, EFD_CLOEXEC)), server_ends_(exchange.stop, PassStop{source_}) {
  if (!done_) return;  // the client's end is not seen then
  watcher_ =
      std::thread([source = source_, client = exchange.socket, done = done_.get()]() mutable {
        // Of the client its end alone: more of its requests may lie there.
        std::array<pollfd, 2> waiting = {{{client, POLLRDHUP, 0}, {done, POLLIN, 0}}};
        while (::poll(waiting.data(), waiting.size(), -1) < 0 && errno == EINTR) {
        }
        if (waiting[0].revents != 0) source.request_stop();
      });
}

Attention::~Attention() {
  if (!watcher_.joinable()) return;
  const std::uint64_t one = 1;
  (void)!::write(done_.get(), &one, sizeof(one));
  watcher_.join();
}

}  // namespace stasis::kubelet_api
