// Source  proc_pid_maps(5), proc_pid_status(5), pid_namespaces(7); tested on 6.18
// Rule    /proc is listed by rising pid, and a child has a higher one than those before it: who is born meanwhile
//         comes later.
// Rule    Memory is inherited by fork(2) from a process of the same program alone, since execve(2) drops it. The
//         size of its program (VmExe) is shown to everybody.
// Rule    A process leaves its pid namespace neither by fork(2) nor by setns(2). So those outside of ours, which we do
//         not see, share memory only with one that came in and has executed no program since; that an ancestor in
//         here is another program says that it has. (Not so of an orphan of one that came in by setns(2).)
#include "engine/memory/machine_maps.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string_view>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

std::string Folder(pid_t pid) { return "/proc/" + std::to_string(pid); }

// Of /proc/PID/status, `name` as "VmExe:"; empty where there is none.
Result<std::string> Field(pid_t pid, std::string_view name) {
  ASSIGN_OR_RETURN(const std::string status, ReadFileAt(AT_FDCWD, Folder(pid) + "/status"));
  std::string_view rest = status;
  while (!rest.empty()) {
    std::string_view line = text::CutLine(rest);
    if (line.starts_with(name)) return std::string(text::Trim(line.substr(name.size())));
  }
  return std::string();
}

Result<std::string> SizeOfProgram(pid_t pid) { return Field(pid, "VmExe:"); }

bool HasEnded(const Status& status) {
  return ErrnoOf(status) == ENOENT || ErrnoOf(status) == ESRCH;
}

// `hidden` may not be looked at.
Status CheckNoRelative(pid_t hidden, const std::vector<pid_t>& relatives) {
  const Result<std::string> size = SizeOfProgram(hidden);
  if (HasEnded(size.status())) return OkStatus();
  RETURN_IF_ERROR(size.status());
  if (size->empty()) return OkStatus();
  for (const pid_t relative : relatives) {
    const Result<std::string> other = SizeOfProgram(relative);
    if (other.ok() && *other != *size) continue;
    return FailedPrecondition("nobody knows whether pid " + std::to_string(hidden) +
                              " maps it too, which we may not look at");
  }
  return OkStatus();
}

// That no process outside of our pid namespace can have what `pid` maps.
Status CheckInside(pid_t pid) {
  ASSIGN_OR_RETURN(const std::string size, SizeOfProgram(pid));
  for (pid_t at = pid; at > 0;) {
    ASSIGN_OR_RETURN(const std::string parent, Field(at, "PPid:"));
    ASSIGN_OR_RETURN(at, text::Number<pid_t>(parent));
    if (at == 0) break;
    ASSIGN_OR_RETURN(const std::string other, SizeOfProgram(at));
    if (other != size) return OkStatus();
  }
  return FailedPrecondition("pid " + std::to_string(pid) +
                            " may share it with processes outside of our pid namespace");
}

}  // namespace

Status ForEachMaps(const std::vector<pid_t>& relatives,
                   const std::function<Status(pid_t pid, const std::string& maps)>& look) {
  if (!InFirstPidNamespace()) {
    for (const pid_t relative : relatives) RETURN_IF_ERROR(CheckInside(relative));
  }
  std::error_code error;
  auto entry = std::filesystem::directory_iterator("/proc", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const Result<pid_t> pid = text::Number<pid_t>(entry->path().filename().string());
    if (!pid.ok()) continue;
    const Result<std::string> maps = ReadFileAt(AT_FDCWD, Folder(*pid) + "/maps");
    if (HasEnded(maps.status())) continue;
    const bool is_hidden = ErrnoOf(maps.status()) == EACCES || ErrnoOf(maps.status()) == EPERM;
    if (!is_hidden) RETURN_IF_ERROR(maps.status());
    RETURN_IF_ERROR(is_hidden ? CheckNoRelative(*pid, relatives) : look(*pid, *maps));
  }
  return error ? SyscallError(error.value(), "list /proc") : OkStatus();
}

}  // namespace stasis::engine
