// What a dump or a restore tells about its steps.
#pragma once

#include <functional>
#include <string>

namespace stasis::engine {

/// As criu(8) counts them: errors, warnings, steps, and what each step works on.
enum class LogLevel { kError = 1, kWarning = 2, kInfo = 3, kDebug = 4 };

/// Hears of each step, in the thread that works.
class Log {
 public:
  using Hear = std::function<void(LogLevel level, const std::string& text)>;

  Log() = default;
  Log(Hear hear) : hear_(std::move(hear)) {}  // NOLINT: a lambda is a log

  void Info(const std::string& text) const { Tell(LogLevel::kInfo, text); }
  void Debug(const std::string& text) const { Tell(LogLevel::kDebug, text); }

 private:
  void Tell(LogLevel level, const std::string& text) const {
    if (hear_) hear_(level, text);
  }

  Hear hear_;
};

}  // namespace stasis::engine
