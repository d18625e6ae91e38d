// Who is connected, in a bounded number, and who has to go when another comes: nobody who is known, or whose
// request is under way, gives way to strangers.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "engine/base/unique_fd.h"

struct sockaddr_storage;

namespace stasis::kubelet_api {

/// Where somebody comes from.
struct Peer {
  std::string address;
  std::string network;  ///< What a bound on addresses counts: of IPv6 the /64, which one host has.
};

/// IPv4 behind an IPv6 socket is IPv4.
Peer PeerOf(const sockaddr_storage& address);

class Connections {
 public:
  using Id = std::uint64_t;

  Connections(int in_all, int of_a_network) : in_all_(in_all), of_a_network_(of_a_network) {}

  /// Nothing: there are too many, and none that could be closed for it; or the server ends.
  std::optional<Id> Admit(UniqueFd socket, const std::string& network);
  /// Closes the socket. Whoever serves it calls this last.
  void Remove(Id id);
  /// Valid until Remove.
  int SocketOf(Id id) const;
  /// Those without a request under way.
  int CountIdle() const;

  /// Somebody was authenticated on it.
  void Know(Id id);
  /// A whole request has come. False: it is not to be answered any more.
  bool BeginRequest(Id id);
  /// From here on it is written alone. Who is slow to read may be cut off at the end of the server, unless it is
  /// the `last` answer: that of a request which the end has stopped already.
  void BeginAnswer(Id id, bool last);
  /// False: no further request is to be taken.
  bool EndRequest(Id id);

  /// Closes those without a request, admits no more, and waits until no request is under way, or for `grace`.
  void End(std::chrono::milliseconds grace);
  /// Hangs up on those that are left, once their last answers are written; waits until all are removed.
  void Cut();

 private:
  enum class Phase { kIdle, kRequest, kAnswer, kLastAnswer };
  struct Client {
    UniqueFd socket;
    std::string network;
    std::uint64_t last_used = 0;  ///< Rises from change to change of any client.
    Phase phase = Phase::kIdle;
    bool known = false;
    bool leaves = false;  ///< Hung up on, by us; its thread is about to see it.
  };

  bool MakeRoom(const std::string& network);
  Client* ToLeave(const std::string* network);
  void HangUp(Client& client);

  const int in_all_;
  const int of_a_network_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Id, Client> clients_;
  std::uint64_t clock_ = 0;
  bool ending_ = false;
};

}  // namespace stasis::kubelet_api
