// Writes events to the API server, from a thread of its own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include "cri/pod_events.h"
#include "kubelet-api/access/api_server.h"
#include "kubelet-api/events/event_queue.h"

namespace stasis::kubelet_api {

struct EventPaces {
  std::chrono::milliseconds between_writes{100};  ///< Of any two: ten a second.
  std::chrono::milliseconds while_away{5000};     ///< Until the API server is tried again.
};

class EventWriter : public cri::PodEvents {
 public:
  /// `node`: the name by which the events say where they are from.
  EventWriter(const ApiServerOptions& options, std::string node, const EventPaces& paces = {});
  /// What waits has two seconds to be written.
  ~EventWriter() override;

  void Tell(cri::PodEvent event) override;
  cri::EventCounts counts() const override;

 private:
  void Run(const std::stop_token& stop);
  /// Makes or changes the Event, whose name is filled in. Unavailable: try later.
  Status Write(EventSeries& series, const std::stop_token& stop);
  Status Create(EventSeries& series, const std::stop_token& stop);
  /// Of what was taken; how long to wait until the next.
  std::chrono::milliseconds Settle(const EventQueue::Taken& taken, const Status& status);

  const ApiServer api_server_;
  const std::string node_;
  const EventPaces paces_;

  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  EventQueue queue_;
  cri::EventCounts counts_;
  bool ends_ = false;
  bool writes_ = false;
  bool is_away_ = false;  // the API server, by the last that was written; of the thread alone
  std::uint64_t last_number_ = 0;  // likewise
  std::jthread thread_;
};

}  // namespace stasis::kubelet_api
