#include "engine/proc/task.h"

#include <csignal>
#include <utility>

#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using text::CutLine;
using text::CutWord;
using text::Field;
using text::Fields;
using text::Number;
using text::ReadField;
using text::Trim;
using text::Words;

// The kernel escapes newline and backslash in a name, nothing else (fs/proc/array.c
// proc_task_name).
std::string UnescapeName(std::string_view text) {
  std::string name;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      ++i;
      name += text[i] == 'n' ? '\n' : text[i];
    } else {
      name += text[i];
    }
  }
  return name;
}

template <typename T>
Result<std::vector<T>> NumbersOf(Fields& text, std::string_view key) {
  const std::optional<std::string_view> field = Field(text, key);
  if (!field) return DataLoss("no line \"" + std::string(key) + ":\"");
  std::vector<T> numbers;
  for (const std::string_view word : Words(*field)) {
    ASSIGN_OR_RETURN(numbers.emplace_back(), Number<T>(word));
  }
  return numbers;
}

Status ReadIds(Fields& text, std::string_view key, std::array<std::uint32_t, 4>& ids) {
  ASSIGN_OR_RETURN(const std::vector<std::uint32_t> numbers, NumbersOf<std::uint32_t>(text, key));
  if (numbers.size() != ids.size()) return DataLoss(std::string(key) + ": not four numbers");
  std::copy(numbers.begin(), numbers.end(), ids.begin());
  return OkStatus();
}

// For lines that a kernel may leave out.
template <std::integral T>
Status ReadOptionalField(Fields& text, std::string_view key, T& target, int base = 10) {
  const std::optional<std::string_view> field = Field(text, key);
  if (!field) return OkStatus();
  const Result<T> value = Number<T>(*field, base);
  if (value.ok()) target = *value;
  return Annotate(value.status(), key);
}

Status ReadSignalsAndCapabilities(Fields& text, TaskStatus& status) {
  const std::pair<std::string_view, std::uint64_t*> masks[] = {
      {"SigPnd", &status.sig_pending},   {"ShdPnd", &status.shared_pending},
      {"SigBlk", &status.blocked},       {"SigIgn", &status.ignored},
      {"SigCgt", &status.caught},        {"CapInh", &status.cap_inheritable},
      {"CapPrm", &status.cap_permitted}, {"CapEff", &status.cap_effective},
      {"CapBnd", &status.cap_bounding},  {"CapAmb", &status.cap_ambient},
  };
  for (const auto& [key, mask] : masks) RETURN_IF_ERROR(ReadField(text, key, *mask, 16));
  return OkStatus();
}

Status ReadNamespacePids(Fields& text, TaskStatus& status) {
  const auto read = [&text](const char* name, NamespaceIds& ids) -> Status {
    ASSIGN_OR_RETURN(const std::vector<pid_t> numbers, NumbersOf<pid_t>(text, name));
    ids.assign(numbers.begin(), numbers.end());
    return OkStatus();
  };
  RETURN_IF_ERROR(read("NStgid", status.ns_tgid));
  RETURN_IF_ERROR(read("NSpid", status.ns_pid));
  RETURN_IF_ERROR(read("NSpgid", status.ns_pgid));
  RETURN_IF_ERROR(read("NSsid", status.ns_sid));
  if (status.ns_pid.empty() || status.ns_tgid.empty()) return DataLoss("NSpid: no number");
  return OkStatus();
}

// In the order in which the kernel writes it (fs/proc/array.c): a tree may have ten thousand threads.
Result<TaskStatus> ReadTaskStatus(std::string_view whole) {
  TaskStatus status;
  Fields text(whole);
  RETURN_IF_ERROR(ReadOptionalField(text, "Umask", status.umask, 8));  // a zombie has none
  const std::optional<std::string_view> state = Field(text, "State");
  if (!whole.starts_with("Name:\t") || !state || state->empty())
    return DataLoss("no name or state");
  // Not trimmed: a name may begin or end with blanks.
  status.name = UnescapeName(whole.substr(6, whole.find('\n') - 6));
  status.state = state->front();
  RETURN_IF_ERROR(ReadField(text, "Tgid", status.tgid));
  RETURN_IF_ERROR(ReadField(text, "Pid", status.pid));
  RETURN_IF_ERROR(ReadField(text, "PPid", status.ppid));
  RETURN_IF_ERROR(ReadField(text, "TracerPid", status.tracer_pid));
  RETURN_IF_ERROR(ReadIds(text, "Uid", status.uid));
  RETURN_IF_ERROR(ReadIds(text, "Gid", status.gid));
  ASSIGN_OR_RETURN(status.groups, NumbersOf<std::uint32_t>(text, "Groups"));
  RETURN_IF_ERROR(ReadNamespacePids(text, status));
  RETURN_IF_ERROR(ReadField(text, "Threads", status.threads));
  RETURN_IF_ERROR(ReadSignalsAndCapabilities(text, status));
  int no_new_privs = 0;
  RETURN_IF_ERROR(ReadField(text, "NoNewPrivs", no_new_privs));
  status.no_new_privs = no_new_privs != 0;
  RETURN_IF_ERROR(ReadOptionalField(text, "Seccomp", status.seccomp));  // CONFIG_SECCOMP
  // Linux 5.9.
  RETURN_IF_ERROR(ReadOptionalField(text, "Seccomp_filters", status.seccomp_filters));
  status.store_bypass = Field(text, "Speculation_Store_Bypass").value_or("");  // Linux 4.17, 5.12
  status.indirect_branch = Field(text, "SpeculationIndirectBranch").value_or("");
  RETURN_IF_ERROR(ReadOptionalField(text, "voluntary_ctxt_switches", status.voluntary_switches));
  return status;
}

Result<TaskStat> ReadTaskStat(std::string_view text) {
  TaskStat stat;
  // Nothing in the name is escaped here; no field behind it holds a parenthesis.
  const std::size_t open = text.find(" (");
  const std::size_t close = text.rfind(") ");
  if (open == std::string_view::npos || close == std::string_view::npos || close < open + 2) {
    return DataLoss("no name in parentheses");
  }
  stat.comm = text.substr(open + 2, close - open - 2);
  ASSIGN_OR_RETURN(stat.pid, Number<pid_t>(text.substr(0, open)));
  const std::vector<std::string_view> words = Words(text.substr(close + 2));
  if (words.size() < 50) return DataLoss("fewer than 52 fields");
  stat.state = words[0].front();

  Status status;
  // Field numbers as in proc_pid_stat(5); the first word behind the name is field 3.
  const auto read = [&]<std::integral T>(std::size_t field, T& target) {
    Result<T> value = Number<T>(words[field - 3]);
    if (value.ok()) target = *value;
    if (status.ok()) status = Annotate(value.status(), "field " + std::to_string(field));
  };
  read(4, stat.ppid);
  read(5, stat.pgrp);
  read(6, stat.session);
  read(7, stat.tty_nr);
  read(8, stat.tpgid);
  read(9, stat.flags);
  read(19, stat.nice);
  read(22, stat.start_time);
  read(26, stat.start_code);
  read(27, stat.end_code);
  read(28, stat.start_stack);
  read(38, stat.exit_signal);
  read(39, stat.processor);
  read(45, stat.start_data);
  read(46, stat.end_data);
  read(47, stat.start_brk);
  read(48, stat.arg_start);
  read(49, stat.arg_end);
  read(50, stat.env_start);
  read(51, stat.env_end);
  read(52, stat.exit_code);
  RETURN_IF_ERROR(status);
  return stat;
}

// By RLIMIT_* number; the names of fs/proc/base.c lnames.
constexpr std::array<std::string_view, 16> kLimitNames = {
    "Max cpu time",       "Max file size",     "Max data size",         "Max stack size",
    "Max core file size", "Max resident set",  "Max processes",         "Max open files",
    "Max locked memory",  "Max address space", "Max file locks",        "Max pending signals",
    "Max msgqueue size",  "Max nice priority", "Max realtime priority", "Max realtime timeout",
};

Result<std::uint64_t> LimitValue(std::string_view word) {
  if (word == "unlimited") return ~std::uint64_t{0};
  return Number<std::uint64_t>(word);
}

// "36/00000000deadbeef"
Status ReadTimerSignal(std::string_view field, PosixTimer& timer) {
  const std::string_view signal = text::Cut(field, '/');
  ASSIGN_OR_RETURN(timer.signal, Number<int>(signal));
  ASSIGN_OR_RETURN(timer.sigval, Number<std::uint64_t>(field, 16));
  return OkStatus();
}

// "signal/tid.123"
Status ReadTimerNotify(std::string_view field, PosixTimer& timer) {
  const std::string_view how = text::Cut(field, '/');
  const std::string_view whom = text::Cut(field, '.');
  if (how == "signal") {
    timer.notify = SIGEV_SIGNAL;
  } else if (how == "none") {
    timer.notify = SIGEV_NONE;
  } else if (how == "thread") {
    timer.notify = SIGEV_THREAD;
  } else {
    return DataLoss("notify: " + std::string(how));
  }
  if (whom == "tid") timer.notify |= SIGEV_THREAD_ID;
  ASSIGN_OR_RETURN(timer.notify_pid, Number<pid_t>(field));
  return OkStatus();
}

}  // namespace

Result<TaskStatus> ParseTaskStatus(std::string_view text) {
  Result<TaskStatus> status = ReadTaskStatus(text);
  if (!status.ok()) return Annotate(status.status(), "/proc/PID/status");
  return status;
}

Result<TaskStat> ParseTaskStat(std::string_view text) {
  Result<TaskStat> stat = ReadTaskStat(text);
  if (!stat.ok()) return Annotate(stat.status(), "/proc/PID/stat");
  return stat;
}

Result<std::array<ResourceLimit, 16>> ParseLimits(std::string_view text) {
  std::array<ResourceLimit, 16> limits;
  for (std::size_t i = 0; i < limits.size(); ++i) {
    std::string_view rest = text;
    std::string_view line;
    do {
      line = CutLine(rest);
      if (line.empty()) {
        return DataLoss("/proc/PID/limits: no line \"" + std::string(kLimitNames[i]) + "\"");
      }
    } while (!line.starts_with(kLimitNames[i]));
    line.remove_prefix(kLimitNames[i].size());
    ASSIGN_OR_RETURN(limits[i].soft, LimitValue(CutWord(line)));
    ASSIGN_OR_RETURN(limits[i].hard, LimitValue(CutWord(line)));
  }
  return limits;
}

Result<std::vector<PosixTimer>> ParsePosixTimers(std::string_view text) {
  std::vector<PosixTimer> timers;
  while (!text.empty()) {
    std::string_view line = CutLine(text);
    const std::string_view key = text::Cut(line, ':');
    const std::string_view value = Trim(line);
    if (key == "ID") {
      ASSIGN_OR_RETURN(timers.emplace_back().id, Number<int>(value));
      continue;
    }
    if (timers.empty()) return DataLoss("/proc/PID/timers: does not begin with \"ID:\"");
    PosixTimer& timer = timers.back();
    if (key == "signal") RETURN_IF_ERROR(ReadTimerSignal(value, timer));
    if (key == "notify") RETURN_IF_ERROR(ReadTimerNotify(value, timer));
    if (key == "ClockID") {
      ASSIGN_OR_RETURN(timer.clock_id, Number<int>(value));
    }
  }
  return timers;
}

}  // namespace stasis::engine
