// One lock a name: what is done to one container is done in turn, containers do not wait for each
// other.
#pragma once

#include <condition_variable>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <utility>

#include "cri/proxy/upstream.h"
#include "engine/base/status.h"

namespace stasis::cri {

class KeyedLocks {
 public:
  /// Held until destroyed.
  class Guard {
   public:
    Guard(Guard&& other) noexcept
        : locks_(std::exchange(other.locks_, nullptr)), key_(std::move(other.key_)) {}
    Guard& operator=(Guard&&) = delete;
    ~Guard() {
      if (locks_ != nullptr) locks_->Release(key_);
    }

   private:
    friend class KeyedLocks;
    Guard(KeyedLocks* locks, std::string key) : locks_(locks), key_(std::move(key)) {}
    KeyedLocks* locks_;
    std::string key_;
  };

  /// Waits until nobody else has `key`. Cancelled, DeadlineExceeded: `limits` came first.
  Result<Guard> Take(const std::string& key, const CallLimits& limits);

 private:
  void Release(const std::string& key);

  std::mutex mutex_;
  std::condition_variable_any released_;
  std::set<std::string> taken_;
};

}  // namespace stasis::cri
