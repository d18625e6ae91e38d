// Source  proc_pid_fdinfo(5), pidfd_getfd(2), tty(4); tested on 6.18
// Rule    /proc/PID/fdinfo/N can be opened only while N is open, and then shows whatever is N when it is read
//         (tid_fd_revalidate(), seq_show() in fs/proc/fd.c).
#include "engine/files/process_files.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>

#include "engine/files/description.h"
#include "engine/files/path.h"
#include "engine/files/restore_files.h"
#include "engine/tasks/process_tree.h"

namespace stasis::engine {
namespace {

using image::FileEntry;

constexpr std::string_view kProc = "/proc/";

bool IsOwnTerminal(const FileEntry& entry) {
  constexpr std::uint32_t kCurrent = 1006;  // CRIU's number for /dev/tty
  return entry.type() == image::FD_TTY && entry.tty().tty_info_id() == kCurrent;
}

Result<UniqueFd> OpenOwnTerminal(RestoredProcess& process, const FileEntry& entry) {
  const Result<int> number =
      OpenInProcess(process, "/dev/tty", OpenFlags(entry.tty().flags()) | O_NOCTTY);
  if (!number.ok()) {
    return FailedPrecondition(
        "the program had a controlling terminal open, and here there is none: restore it with "
        "one "
        "(tty: true)");
  }
  ASSIGN_OR_RETURN(UniqueFd fd, TakeFrom(process, *number));
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.tty().flags()));
  return fd;
}

// N of "…/fdinfo/N".
std::optional<int> ShownDescriptor(std::string_view path) {
  constexpr std::string_view kFdinfo = "/fdinfo/";
  const std::size_t at = path.rfind(kFdinfo);
  if (at == std::string_view::npos) return {};
  path.remove_prefix(at + kFdinfo.size());
  int number = -1;
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), number);
  if (error != std::errc() || end != path.data() + path.size() || number < 0) return {};
  return number;
}

// Opens `path` of /proc while descriptor `shown` is some file, which is not there yet.
Result<int> OpenFdinfo(RestoredProcess& process, const std::string& path, int flags, int shown) {
  RemoteSyscalls& remote = *process.remote;
  if (remote.Call("fcntl", SYS_fcntl, shown, F_GETFD).ok()) {
    return OpenInProcess(process, path, flags);
  }
  ASSIGN_OR_RETURN(const int stand_in, OpenInProcess(process, "/", O_PATH));
  if (stand_in != shown) {
    RETURN_IF_ERROR(remote.Call("dup3", SYS_dup3, stand_in, shown, O_CLOEXEC).status());
    RETURN_IF_ERROR(remote.Call("close", SYS_close, stand_in).status());
  }
  Result<int> number = OpenInProcess(process, path, flags);
  RETURN_IF_ERROR(remote.Call("close", SYS_close, shown).status());
  return number;
}

}  // namespace

bool IsOfProcess(const FileEntry& entry, const CheckpointImages& images) {
  if (entry.type() == image::FD_PIDFD || IsOwnTerminal(entry)) return true;
  std::string_view path = entry.reg().name();
  if (entry.type() != image::FD_REG || !path.starts_with(kProc)) return false;
  path.remove_prefix(kProc.size());
  return std::ranges::any_of(images.processes, [&](const ProcessImage& process) {
    return path.starts_with(std::to_string(process.pid()) + "/");
  });
}

Result<UniqueFd> OpenOfProcess(RestoredProcess& process, const FileEntry& entry,
                               const std::function<pid_t(pid_t)>& host_pid, DeadProcesses& dead) {
  if (entry.type() == image::FD_PIDFD) {
    return OpenPidfd(entry.pidfd(), process.pidfd.get(), host_pid, dead);
  }
  if (IsOwnTerminal(entry)) return OpenOwnTerminal(process, entry);
  const image::RegFileEntry& reg = entry.reg();
  const int flags = OpenFlags(reg.flags()) | O_NOCTTY | O_NONBLOCK;
  const std::optional<int> shown = ShownDescriptor(reg.name());
  ASSIGN_OR_RETURN(const int number, shown ? OpenFdinfo(process, reg.name(), flags, *shown)
                                           : OpenInProcess(process, reg.name(), flags));
  ASSIGN_OR_RETURN(UniqueFd fd, TakeFrom(process, number));
  RETURN_IF_ERROR(CheckRegEntry(fd.get(), reg));
  RETURN_IF_ERROR(SetRegState(fd.get(), reg));
  return fd;
}

}  // namespace stasis::engine
