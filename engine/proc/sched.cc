#include "engine/proc/sched.h"

#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

// "3625141.754291": milliseconds and six decimals.
Result<std::chrono::nanoseconds> Milliseconds(std::string_view text) {
  const std::string_view whole = text::Cut(text, '.');
  if (text.size() != 6) return DataLoss("a time without six decimals");
  ASSIGN_OR_RETURN(const auto milliseconds, text::Number<std::int64_t>(whole));
  ASSIGN_OR_RETURN(const auto rest, text::Number<std::int64_t>(text));
  return std::chrono::milliseconds(milliseconds) + std::chrono::nanoseconds(rest);
}

}  // namespace

Result<SchedulerText> ParseScheduler(std::string_view text) {
  SchedulerText scheduler;
  int found = 0;
  while (!text.empty()) {
    std::string_view line = text::CutLine(text);
    const std::string_view name = text::Trim(text::Cut(line, ':'));
    const std::string_view value = text::Trim(line);
    if (name == "se.exec_start") {
      ASSIGN_OR_RETURN(scheduler.exec_start, Milliseconds(value));
      ++found;
    } else if (name == "nr_voluntary_switches") {
      ASSIGN_OR_RETURN(scheduler.voluntary_switches, text::Number<std::uint64_t>(value));
      ++found;
    }
  }
  if (found != 2) return DataLoss("/proc/TID/sched: no se.exec_start or nr_voluntary_switches");
  return scheduler;
}

std::optional<SyscallText> ParseSyscall(std::string_view text) {
  SyscallText call;
  const auto number = text::Number<long>(text::CutWord(text));  // "running", or -1 with two words
  if (!number.ok() || *number < 0) return std::nullopt;
  call.number = *number;
  for (std::uint64_t& argument : call.arguments) {
    std::string_view word = text::CutWord(text);
    if (!word.starts_with("0x")) return std::nullopt;
    word.remove_prefix(2);
    const auto value = text::Number<std::uint64_t>(word, 16);
    if (!value.ok()) return std::nullopt;
    argument = *value;
  }
  return call;
}

}  // namespace stasis::engine
