// Answers of the API server, for a short time and in a bounded number.
#pragma once

#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace stasis::kubelet_api {

template <typename T>
class Remembered {
 public:
  explicit Remembered(std::chrono::steady_clock::duration time) : time_(time) {}

  std::optional<T> Find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto found = answers_.find(key);
    if (found == answers_.end()) return std::nullopt;
    if (std::chrono::steady_clock::now() < found->second.first) return found->second.second;
    answers_.erase(found);
    return std::nullopt;
  }

  void Put(const std::string& key, T answer) {
    const std::lock_guard lock(mutex_);
    if (answers_.size() >= kMost) answers_.clear();
    answers_.insert_or_assign(
        key, std::pair(std::chrono::steady_clock::now() + time_, std::move(answer)));
  }

 private:
  static constexpr std::size_t kMost = 1024;

  const std::chrono::steady_clock::duration time_;
  std::mutex mutex_;
  std::map<std::string, std::pair<std::chrono::steady_clock::time_point, T>> answers_;
};

}  // namespace stasis::kubelet_api
