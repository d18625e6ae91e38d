#include "engine/tracee/task_folder.h"

#include <dirent.h>
#include <fcntl.h>

#include <charconv>
#include <memory>

#include "engine/base/io.h"
#include "engine/proc/task.h"

namespace stasis::engine {

std::vector<pid_t> ParseChildren(std::string_view text) {
  std::vector<pid_t> pids;
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (at < end) {
    pid_t pid = 0;
    const auto [next, error] = std::from_chars(at, end, pid);
    if (error == std::errc()) pids.push_back(pid);
    at = error == std::errc() ? next : at + 1;
  }
  return pids;
}

std::string TaskFolder(pid_t pid, pid_t tid) {
  return "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid);
}

std::vector<pid_t> ThreadsOf(pid_t pid) {
  std::vector<pid_t> tids;
  const std::string path = "/proc/" + std::to_string(pid) + "/task";
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (folder == nullptr) return tids;
  while (const dirent* const entry = ::readdir(folder.get())) {
    const std::string_view name = entry->d_name;
    pid_t tid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), tid).ec == std::errc()) {
      tids.push_back(tid);
    }
  }
  return tids;
}

bool IsKernelWorker(pid_t pid, pid_t tid) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, TaskFolder(pid, tid) + "/stat");
  const Result<TaskStat> stat = text.ok() ? ParseTaskStat(*text) : text.status();
  constexpr unsigned kIoWorker = 0x10;  // PF_IO_WORKER in include/linux/sched.h
  return stat.ok() && (stat->flags & kIoWorker) != 0;
}

}  // namespace stasis::engine
