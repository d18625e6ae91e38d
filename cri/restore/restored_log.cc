#include "cri/restore/restored_log.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <span>
#include <vector>

#include "engine/base/io.h"

namespace stasis::cri {
namespace {

// As containerd, CRI-O and Podman call it; all in the format of CRI's logs.
constexpr std::array<std::string_view, 3> kLogMembers = {"container.log",
                                                         "io.kubernetes.cri-o.LogPath", "ctr.log"};
// The kubelet rotates at 10 MiB by default; of more than this the end is kept.
constexpr std::uint64_t kMaxLogBytes = std::uint64_t{64} << 20;
constexpr std::uint64_t kPieceBytes = std::uint64_t{256} << 10;

// A link on the way would be somebody's trap, for the content of an archive is a stranger's: a pod
// may have the folder of all pods' logs as a volume. Nor may a FIFO there hold us. Mode as the
// runtimes make it.
Result<UniqueFd> OpenLog(const std::string& path) {
  open_how how = {};
  how.flags = O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC;
  how.mode = 0640;
  how.resolve = RESOLVE_NO_SYMLINKS;
  UniqueFd log(static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, path.c_str(), &how, sizeof(how))));
  if (!log && errno == ELOOP) {
    return FailedPrecondition(path + " leads through a symbolic link, which is not followed");
  }
  if (!log) return SyscallError(errno, "open " + path);
  struct stat status{};
  if (::fstat(log.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_nlink != 1) {
    return FailedPrecondition(path + " is not a log: no regular file, or one with a second name");
  }
  return log;
}

std::string Timestamp() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now);
  const std::time_t time = seconds.count();
  std::tm utc{};
  ::gmtime_r(&time, &utc);
  char date[32];
  std::strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &utc);
  char text[48];
  std::snprintf(text, sizeof(text), "%s.%09ldZ", date,
                static_cast<long>(std::chrono::nanoseconds(now - seconds).count()));
  return text;
}

}  // namespace

Status AppendSavedLog(const archive::Archive& checkpoint, const std::string& log_path) {
  const auto* const member = std::find_if(kLogMembers.begin(), kLogMembers.end(),
                                          [&](auto name) { return checkpoint.Has(name); });
  if (member == kLogMembers.end() || log_path.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const std::uint64_t size, checkpoint.members().Size(*member));
  ASSIGN_OR_RETURN(const UniqueFd log, OpenLog(log_path));
  std::vector<std::byte> piece(std::min(size, kPieceBytes));
  for (std::uint64_t offset = size - std::min(size, kMaxLogBytes); offset < size;) {
    const std::span<std::byte> part = std::span(piece).first(std::min(size - offset, kPieceBytes));
    RETURN_IF_ERROR(checkpoint.members().ReadAt(*member, offset, part));
    RETURN_IF_ERROR(WriteAll(log.get(), part));
    offset += part.size();
  }
  return OkStatus();
}

Status AppendLine(const std::string& log_path, std::string_view text) {
  if (log_path.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const UniqueFd log, OpenLog(log_path));
  std::string line = Timestamp() + " stderr F ";
  for (const char c : text) line += c == '\n' ? ' ' : c;
  return WriteAll(log.get(), line + "\n");
}

}  // namespace stasis::cri
