#include "engine/tracee/task_folder.h"

#include <fcntl.h>

#include <charconv>
#include <filesystem>
#include <string_view>

#include "engine/base/io.h"

namespace stasis::engine {
namespace {

std::vector<pid_t> ParsePids(std::string_view text) {
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

}  // namespace

std::string TaskFolder(pid_t pid, pid_t tid) {
  return "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid);
}

std::vector<pid_t> ThreadsOf(pid_t pid) {
  std::vector<pid_t> tids;
  std::error_code error;
  const std::filesystem::path folder = "/proc/" + std::to_string(pid) + "/task";
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    pid_t tid = 0;
    std::from_chars(name.data(), name.data() + name.size(), tid);
    tids.push_back(tid);
  }
  return tids;
}

std::vector<pid_t> ChildrenOf(pid_t pid) {
  std::vector<pid_t> children;
  for (const pid_t tid : ThreadsOf(pid)) {
    const auto text = ReadFileAt(AT_FDCWD, TaskFolder(pid, tid) + "/children");
    if (!text.ok()) continue;  // the thread has ended
    for (const pid_t child : ParsePids(*text)) children.push_back(child);
  }
  return children;
}

}  // namespace stasis::engine
