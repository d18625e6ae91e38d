// Answers of the API server, for a short time and in a bounded number.
#pragma once

#include <chrono>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace stasis::kubelet_api {

/// Where anybody can bring about answers of one kind, these have a place of their own: they push out each other.
template <typename T>
class Remembered {
 public:
  explicit Remembered(std::chrono::steady_clock::duration time, std::size_t most = 1024)
      : time_(time), most_(most) {}

  std::optional<T> Find(const std::string& key) {
    const std::lock_guard lock(mutex_);
    ForgetOld();
    const auto found = places_.find(key);
    if (found == places_.end()) return std::nullopt;
    return found->second->answer;
  }

  /// Of a key that is known already, the first answer stays until its time is over.
  void Put(const std::string& key, T answer) {
    const std::lock_guard lock(mutex_);
    ForgetOld();
    if (places_.contains(key)) return;
    if (answers_.size() >= most_) ForgetFirst();
    answers_.push_back({key, std::move(answer), std::chrono::steady_clock::now() + time_});
    places_.emplace(key, std::prev(answers_.end()));
  }

 private:
  struct One {
    std::string key;
    T answer;
    std::chrono::steady_clock::time_point until;
  };

  // All are kept for the same time, so the first is the oldest.
  void ForgetOld() {
    const auto now = std::chrono::steady_clock::now();
    while (!answers_.empty() && answers_.front().until <= now) ForgetFirst();
  }
  void ForgetFirst() {
    places_.erase(answers_.front().key);
    answers_.pop_front();
  }

  const std::chrono::steady_clock::duration time_;
  const std::size_t most_;
  std::mutex mutex_;
  std::list<One> answers_;
  std::map<std::string, typename std::list<One>::iterator> places_;
};

}  // namespace stasis::kubelet_api
