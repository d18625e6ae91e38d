// Source  fs/proc/base.c, fs/seq_file.c; tested on 6.18
// Rule    A file of /proc stays with the task that it was opened for (struct pid): once that has ended, reading says
//         ESRCH, also when its number is used again.
// Rule    These files are made anew by every read at offset 0. Those that one function of the kernel writes
//         (single_open) are given at once, as far as there is room; the list of children in pieces (seq_read_iter).
#include "engine/tracee/task_files.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/tracee/task_folder.h"

namespace stasis::engine {
namespace {

constexpr const char* kNames[] = {"status", "stat", "children", "cgroup", "timerslack_ns"};
static_assert(std::size(kNames) == TaskFiles::kCount);
constexpr std::size_t kFilesOfOne = TaskFiles::kCount + 1;

// Of all tasks together; the rest of the limit is for what a checkpoint cannot do without.
std::atomic<std::size_t> open_files = 0;

std::size_t MostFiles() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  constexpr rlim_t kEnough = 30'000;  // five thousand threads
  return std::min(limit.rlim_cur / 3, kEnough);
}

Result<std::string> ReadFromStart(int fd, bool in_one_piece) {
  std::string text;
  std::array<char, 4096> piece;
  while (true) {
    const ssize_t got = ::pread(fd, piece.data(), piece.size(), static_cast<off_t>(text.size()));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return SyscallError(errno, "read a file of /proc");
    text.append(piece.data(), static_cast<std::size_t>(got));
    if (got == 0 || (in_one_piece && static_cast<std::size_t>(got) < piece.size())) return text;
  }
}

}  // namespace

TaskFiles::TaskFiles(TaskFiles&& other) noexcept
    : pid_(other.pid_),
      tid_(other.tid_),
      files_(std::move(other.files_)),
      namespaces_(std::move(other.namespaces_)),
      counted_(std::exchange(other.counted_, false)) {}

TaskFiles& TaskFiles::operator=(TaskFiles&& other) noexcept {
  if (this == &other) return *this;
  Close();
  pid_ = other.pid_;
  tid_ = other.tid_;
  files_ = std::move(other.files_);
  namespaces_ = std::move(other.namespaces_);
  counted_ = std::exchange(other.counted_, false);
  return *this;
}

// timerslack_ns is there for each thread as a process only, not below /proc/PID/task.
std::string TaskFiles::PathOf(const char* name) const {
  if (name == kNames[kTimerSlack]) return "/proc/" + std::to_string(tid_) + "/" + name;
  return TaskFolder(pid_, tid_) + "/" + name;
}

void TaskFiles::Open() {
  if (open_files.fetch_add(kFilesOfOne) + kFilesOfOne > MostFiles()) {
    open_files -= kFilesOfOne;
    return;
  }
  counted_ = true;
  const auto open = [](const std::string& path, int flags) {
    Result<UniqueFd> fd = OpenAt(AT_FDCWD, path, flags);
    return fd.ok() ? *std::move(fd) : UniqueFd();  // then it is opened when it is read
  };
  for (std::size_t i = 0; i < kCount; ++i) files_[i] = open(PathOf(kNames[i]), O_RDONLY);
  namespaces_ = open(PathOf("ns"), O_PATH | O_DIRECTORY);
}

void TaskFiles::Close() {
  for (UniqueFd& file : files_) file.Reset();
  namespaces_.Reset();
  if (std::exchange(counted_, false)) open_files -= kFilesOfOne;
}

Result<std::string> TaskFiles::Read(Name name) const {
  if (files_[name]) {
    Result<std::string> text = ReadFromStart(files_[name].get(), name != kChildren);
    // Its number may be another's by now, whose file this is not.
    if (ErrnoOf(text.status()) != ESRCH) return text;
  }
  return ReadFileAt(AT_FDCWD, PathOf(kNames[name]));
}

std::vector<pid_t> TaskFiles::Children() const {
  const Result<std::string> text = Read(kChildren);
  return text.ok() ? ParseChildren(*text) : std::vector<pid_t>();
}

Result<int> TaskFiles::Namespaces(UniqueFd& opened) const {
  if (namespaces_) return namespaces_.get();
  ASSIGN_OR_RETURN(opened, OpenAt(AT_FDCWD, PathOf("ns"), O_PATH | O_DIRECTORY));
  return opened.get();
}

}  // namespace stasis::engine
