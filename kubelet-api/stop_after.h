// A stop that comes by itself.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <thread>

#include "engine/base/stop.h"

namespace stasis::kubelet_api {

/// Requests a stop after `time`, or when `sooner` is requested.
class StopAfter {
 public:
  explicit StopAfter(std::chrono::milliseconds time, const std::stop_token& sooner = {})
      : sooner_(sooner, PassStop{source_}),
        timer_([source = source_, time](const std::stop_token& done) mutable {
          std::mutex mutex;
          std::condition_variable_any never;
          std::unique_lock lock(mutex);
          never.wait_for(lock, done, time, [] { return false; });
          if (!done.stop_requested()) source.request_stop();
        }) {}
  StopAfter(const StopAfter&) = delete;
  StopAfter& operator=(const StopAfter&) = delete;

  std::stop_token token() const { return source_.get_token(); }

 private:
  std::stop_source source_;
  std::stop_callback<PassStop> sooner_;
  std::jthread timer_;
};

}  // namespace stasis::kubelet_api
