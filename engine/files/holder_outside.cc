#include "engine/files/holder_outside.h"

#include <unistd.h>

#include <system_error>

#include "engine/proc/text.h"

namespace stasis::engine {

Result<pid_t> HolderOutside(
    const FileDumpContext& context,
    const std::function<bool(const std::filesystem::path& link)>& is_wanted) {
  std::error_code error;
  for (const auto& process : std::filesystem::directory_iterator("/proc", error)) {
    const Result<pid_t> pid = text::Number<pid_t>(process.path().filename().string());
    if (!pid.ok() || *pid == ::getpid() || context.IsProcess(*pid)) continue;
    std::error_code gone;
    auto entry = std::filesystem::directory_iterator(process.path() / "fd", gone);
    for (; !gone && entry != std::filesystem::directory_iterator(); entry.increment(gone)) {
      if (is_wanted(entry->path())) return *pid;
    }
  }
  if (error) return SyscallError(error.value(), "list /proc");
  return pid_t{0};
}

}  // namespace stasis::engine
