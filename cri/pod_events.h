// What becomes of a pod's containers, for whoever looks at the pod: told here, written elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cri/container_facts.h"

namespace stasis::cri {

/// Whom an event is about. Containers that no kubelet made lack names, and nobody is told of them.
struct EventSubject {
  PodContainer names;
  std::string pod_uid;
};
EventSubject SubjectOf(const google::protobuf::Map<std::string, std::string>& labels);

struct PodEvent {
  EventSubject of;
  bool is_warning = false;
  std::string reason;   ///< One word, which programs compare.
  std::string message;  ///< May hold what containers and images say: any bytes, of any length.
  std::chrono::system_clock::time_point time;
};

struct EventCounts {
  std::uint64_t written = 0;
  std::uint64_t dropped = 0;
};

class PodEvents {
 public:
  virtual ~PodEvents() = default;
  /// Neither waits nor fails: a checkpoint goes on whatever becomes of the event. From any thread.
  virtual void Tell(PodEvent event) = 0;
  virtual EventCounts counts() const = 0;
};

/// "3.2 MiB", "512 bytes"; "1.5 ms", "12.3 s".
std::string SizeText(std::uint64_t bytes);
std::string TimeText(std::chrono::microseconds time);

}  // namespace stasis::cri
