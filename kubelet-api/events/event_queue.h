// Events that wait to be written, alike ones as one. Bounded, and slow on purpose: a container that is restored
// and fails over and over takes one object of the API server, written every few seconds.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "cri/pod_events.h"

namespace stasis::kubelet_api {

/// `text` in printable ASCII, other bytes as '?', at most `most` bytes: what a container says reaches terminals.
std::string Printable(std::string_view text, std::size_t most);

/// Events of one reason about one container: one Event of the API server, which counts.
struct EventSeries {
  cri::PodEvent latest;
  std::uint64_t count = 0;
  std::uint64_t untold = 0;  ///< How many of them the API server does not know yet.
  std::chrono::system_clock::time_point first;
  std::string object;     ///< Name of the Event; empty: it has none yet.
  bool is_there = false;  ///< In the API server.
};

/// Not safe to use from several threads.
class EventQueue {
 public:
  using Time = std::chrono::steady_clock::time_point;

  /// False: dropped, as too many others wait.
  bool Put(cri::PodEvent event, Time now);

  /// When the next one is to be written; nothing: none waits.
  std::optional<Time> Due() const;

  /// The one that is due, by its key. It ends with one of the three below.
  struct Taken {
    std::string key;
    EventSeries series;
  };
  std::optional<Taken> Take(Time now);
  void Written(const Taken& taken, Time now);
  /// To be written again, at `then`. False: it has waited for too long and is dropped.
  bool PutBack(const Taken& taken, Time now, Time then);
  void Drop(const Taken& taken);

  bool empty() const { return !Due(); }

 private:
  struct Entry {
    EventSeries series;
    bool waits = false;
    Time next_write;
    Time last_told;
  };
  bool MakeRoom();

  std::map<std::string, Entry> entries_;
};

}  // namespace stasis::kubelet_api
