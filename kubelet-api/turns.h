// How many of something one name has at once, and all together.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace stasis::kubelet_api {

class Turns {
 public:
  /// One of a name's, until destroyed.
  class Turn {
   public:
    Turn(Turn&& other) noexcept
        : turns_(std::exchange(other.turns_, nullptr)), name_(std::move(other.name_)) {}
    Turn& operator=(Turn&&) = delete;
    ~Turn() {
      if (turns_ != nullptr) turns_->GiveBack(name_);
    }

   private:
    friend class Turns;
    Turn(Turns* turns, std::string name) : turns_(turns), name_(std::move(name)) {}
    Turns* turns_;
    std::string name_;
  };

  Turns(int of_a_name, int in_all) : of_a_name_(of_a_name), in_all_(in_all) {}

  /// Nothing: all are taken. Nobody waits here.
  std::optional<Turn> Take(const std::string& name) {
    const std::lock_guard lock(mutex_);
    int& taken = taken_[name];
    if (taken >= of_a_name_ || all_ >= in_all_) {
      if (taken == 0) taken_.erase(name);
      return std::nullopt;
    }
    ++taken;
    ++all_;
    return Turn(this, name);
  }

 private:
  void GiveBack(const std::string& name) {
    const std::lock_guard lock(mutex_);
    --all_;
    const auto found = taken_.find(name);
    if (--found->second == 0) taken_.erase(found);
  }

  const int of_a_name_;
  const int in_all_;
  std::mutex mutex_;
  std::map<std::string, int> taken_;
  int all_ = 0;
};

}  // namespace stasis::kubelet_api
