#include "kubelet-api/transport/connections.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <utility>

namespace stasis::kubelet_api {

Peer PeerOf(const sockaddr_storage& address) {
  std::array<char, INET6_ADDRSTRLEN> text = {};
  const auto shown = [&](int family, const void* bytes) {
    return std::string(::inet_ntop(family, bytes, text.data(), text.size()));
  };
  if (address.ss_family != AF_INET6) {
    const std::string four =
        shown(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr);
    return {four, four};
  }
  in6_addr six = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  if (IN6_IS_ADDR_V4MAPPED(&six)) {
    const std::string four = shown(AF_INET, &six.s6_addr[12]);
    return {four, four};
  }
  Peer peer = {shown(AF_INET6, &six), {}};
  std::memset(&six.s6_addr[8], 0, 8);
  peer.network = shown(AF_INET6, &six) + "/64";
  return peer;
}

std::optional<Connections::Id> Connections::Admit(UniqueFd socket, const std::string& network) {
  const std::lock_guard lock(mutex_);
  if (ending_ || !MakeRoom(network)) return std::nullopt;
  const Id id = ++clock_;
  clients_.emplace(id, Client{.socket = std::move(socket), .network = network, .last_used = id});
  return id;
}

bool Connections::MakeRoom(const std::string& network) {
  const auto stays = [](const auto& one) { return !one.second.leaves; };
  const auto is_of = [&](const auto& one) { return stays(one) && one.second.network == network; };
  const auto limit = static_cast<std::size_t>(in_all_);
  if (clients_.size() >= limit * 2) return false;  // as many are about to leave
  const bool many_of_it = std::ranges::count_if(clients_, is_of) >= of_a_network_;
  if (!many_of_it && std::ranges::count_if(clients_, stays) < in_all_) return true;
  Client* const leaving = ToLeave(many_of_it ? &network : nullptr);
  if (leaving == nullptr) return false;
  HangUp(*leaving);
  return true;
}

// Strangers before those who are known, of these the network that has most of them, of it the one that was quiet
// for the longest time.
Connections::Client* Connections::ToLeave(const std::string* network) {
  const auto may_leave = [&](const Client& client) {
    return !client.leaves && client.phase == Phase::kIdle &&
           (network == nullptr || client.network == *network);
  };
  std::map<std::string, int> strangers;
  for (const auto& [id, client] : clients_) {
    if (may_leave(client) && !client.known) ++strangers[client.network];
  }
  const auto rank = [&](const Client& client) {
    return std::tuple(client.known, client.known ? 0 : -strangers[client.network],
                      client.last_used);
  };
  Client* first = nullptr;
  for (auto& [id, client] : clients_) {
    if (may_leave(client) && (first == nullptr || rank(client) < rank(*first))) first = &client;
  }
  return first;
}

void Connections::HangUp(Client& client) {
  client.leaves = true;
  ::shutdown(client.socket.get(), SHUT_RDWR);  // the number stays taken until Remove
}

void Connections::Remove(Id id) {
  const std::lock_guard lock(mutex_);
  clients_.erase(id);
  changed_.notify_all();  // under the lock: whoever waits may destroy this
}

int Connections::SocketOf(Id id) const {
  const std::lock_guard lock(mutex_);
  return clients_.at(id).socket.get();
}

int Connections::CountIdle() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(std::ranges::count_if(clients_, [](const auto& one) {
    return one.second.phase == Phase::kIdle && !one.second.leaves;
  }));
}

void Connections::Know(Id id) {
  const std::lock_guard lock(mutex_);
  clients_.at(id).known = true;
}

bool Connections::BeginRequest(Id id) {
  const std::lock_guard lock(mutex_);
  Client& client = clients_.at(id);
  if (ending_ || client.leaves) return false;
  client.phase = Phase::kRequest;
  return true;
}

void Connections::BeginAnswer(Id id, bool last) {
  const std::lock_guard lock(mutex_);
  clients_.at(id).phase = last ? Phase::kLastAnswer : Phase::kAnswer;
}

bool Connections::EndRequest(Id id) {
  const std::lock_guard lock(mutex_);
  Client& client = clients_.at(id);
  client.phase = Phase::kIdle;
  client.last_used = ++clock_;
  changed_.notify_all();
  return !ending_ && !client.leaves;
}

void Connections::End(std::chrono::milliseconds grace) {
  std::unique_lock lock(mutex_);
  ending_ = true;
  for (auto& [id, client] : clients_) {
    if (client.phase == Phase::kIdle) HangUp(client);
  }
  changed_.wait_for(lock, grace, [this] {
    return std::ranges::all_of(clients_,
                               [](const auto& one) { return one.second.phase == Phase::kIdle; });
  });
}

void Connections::Cut() {
  std::unique_lock lock(mutex_);
  for (auto& [id, client] : clients_) {
    // A request that is cut short is still told so.
    const bool is_told = client.phase == Phase::kRequest || client.phase == Phase::kLastAnswer;
    ::shutdown(client.socket.get(), is_told ? SHUT_RD : SHUT_RDWR);
  }
  changed_.wait(lock, [this] { return clients_.empty(); });
}

}  // namespace stasis::kubelet_api
