#include "cri/keyed_locks.h"

#include <chrono>

namespace stasis::cri {

Result<KeyedLocks::Guard> KeyedLocks::Take(const std::string& key, const CallLimits& limits) {
  std::unique_lock lock(mutex_);
  const auto is_free = [&] { return !taken_.contains(key); };
  if (limits.deadline == std::chrono::system_clock::time_point::max()) {
    released_.wait(lock, limits.stop, is_free);
  } else {
    released_.wait_until(lock, limits.stop, limits.deadline, is_free);
  }
  if (!is_free()) {
    return limits.stop.stop_requested()
               ? Cancelled("cancelled while another operation on " + key + " was under way")
               : DeadlineExceeded("another operation on " + key + " is still under way");
  }
  taken_.insert(key);
  return Guard(this, key);
}

void KeyedLocks::Release(const std::string& key) {
  const std::lock_guard lock(mutex_);
  taken_.erase(key);
  released_.notify_all();
}

}  // namespace stasis::cri
