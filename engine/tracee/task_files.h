// What /proc tells of one task, in files that are opened while nobody waits for it.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {

/// To read an open file of /proc takes a third of the time of opening and closing it, too. Opened shortly before a
/// tree stands still, read while it does; what is not open is opened for each look.
class TaskFiles {
 public:
  enum Name : unsigned { kStatus, kStat, kChildren, kCgroup, kTimerSlack, kCount };

  /// Of no task.
  TaskFiles() = default;
  /// Of thread `tid` of process `pid`, none of them open.
  TaskFiles(pid_t pid, pid_t tid) : pid_(pid), tid_(tid) {}
  TaskFiles(TaskFiles&& other) noexcept;
  TaskFiles& operator=(TaskFiles&& other) noexcept;
  ~TaskFiles() { Close(); }

  pid_t pid() const { return pid_; }

  /// Opens all, or none where those that are open by now are many for the limit of open files.
  void Open();
  void Close();

  /// The whole file, as of now. NotFound: the task is gone.
  Result<std::string> Read(Name name) const;
  /// The children that it made (proc_pid_task_children(5)); none when it has ended.
  std::vector<pid_t> Children() const;
  /// The directory of its namespaces (`ns`): that which is open, or `opened` for as long as the caller keeps it.
  Result<int> Namespaces(UniqueFd& opened) const;

 private:
  std::string PathOf(const char* name) const;

  pid_t pid_ = 0, tid_ = 0;
  std::array<UniqueFd, kCount> files_ = {};
  UniqueFd namespaces_;
  bool counted_ = false;
};

}  // namespace stasis::engine
