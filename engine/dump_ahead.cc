#include "engine/dump_ahead.h"

#include <fcntl.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/base/kernel_btf.h"
#include "engine/files/io_uring.h"
#include "engine/tracee/task_files.h"
#include "engine/tracee/task_folder.h"

namespace stasis::engine {

KernelAhead OpenKernelFor(pid_t root) {
  constexpr std::size_t kMostLooks = 64;
  bool has_ring = false, has_many = false;
  std::vector<pid_t> pids = {root};
  for (std::size_t i = 0; i < std::min(pids.size(), kMostLooks); ++i) {
    const pid_t pid = pids[i];
    const auto maps = ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/maps");
    has_ring = has_ring || (maps.ok() && maps->find(kRingLink) != std::string::npos);
    const std::vector<pid_t> threads = ThreadsOf(pid);
    has_many = has_many || threads.size() >= KernelTasks::kWorthIt;
    for (const pid_t tid : threads) {
      const std::vector<pid_t> children = TaskFiles(pid, tid).Children();
      pids.insert(pids.end(), children.begin(), children.end());
    }
  }
  KernelAhead ahead;
  if (!has_ring && !has_many) return ahead;
  ahead.structures = KernelBtf::Running().value_or(nullptr);  // whoever asks again is told why not
  if (!has_many) return ahead;
  Result<KernelTasks> opened = KernelTasks::Open();
  if (opened.ok()) ahead.tasks.emplace(*std::move(opened));
  if (!has_ring) ahead.structures.reset();
  return ahead;
}

}  // namespace stasis::engine
