// Source  sched_setaffinity(2), cpuset(7), proc_pid_cpuset(5); tested on 6.18
// Rule    A thread that was never told runs wherever its cpuset lets it, and its mask is the cpuset's: that
//         is for the node to say, and not kept. Nobody shows whether a mask of the same value was asked for.
// Rule    sched_setaffinity(2) leaves out processors that are not there or not in the cpuset; EINVAL when
//         none is left.
#include "engine/tasks/affinity.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <string>

#include "engine/base/io.h"
#include "engine/proc/text.h"
#include "engine/tasks/cgroups.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kMaxBytes = 1024;  // 8192 processors, NR_CPUS of the largest configuration

using Mask = std::string;  // of bits, without trailing zero bytes

Mask Trimmed(Mask mask) {
  mask.resize(mask.find_last_not_of('\0') + 1);
  return mask;
}

Result<Mask> MaskOf(pid_t tid) {
  Mask mask(kMaxBytes, '\0');
  if (::syscall(SYS_sched_getaffinity, tid, mask.size(), mask.data()) < 0) {
    return SyscallError(errno, "sched_getaffinity");
  }
  return Trimmed(std::move(mask));
}

// "0-2,5", as sysfs and cpusets have it.
Result<Mask> ParseList(std::string_view list) {
  Mask mask(kMaxBytes, '\0');
  list = text::Trim(list);
  while (!list.empty()) {
    std::string_view range = text::Cut(list, ',');
    ASSIGN_OR_RETURN(const auto first, text::Number<std::uint32_t>(text::Cut(range, '-')));
    std::uint32_t last = first;
    if (!range.empty()) {
      ASSIGN_OR_RETURN(last, text::Number<std::uint32_t>(range));
    }
    if (last >= kMaxBytes * 8) return DataLoss("a processor with number " + std::to_string(last));
    for (std::uint32_t i = first; i <= last; ++i) {
      mask[i / 8] = static_cast<char>(mask[i / 8] | 1 << i % 8);
    }
  }
  return Trimmed(std::move(mask));
}

class Cpusets {
 public:
  // The processors that the cpuset of `tid` has; none where nobody knows.
  Result<Mask> Of(pid_t tid) {
    const auto path = ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(tid) + "/cpuset");
    if (!path.ok()) return Mask();  // CONFIG_PROC_PID_CPUSET
    const std::string name(text::Trim(*path));
    if (const auto known = masks_.find(name); known != masks_.end()) return known->second;
    RETURN_IF_ERROR(OpenRoot());
    for (const char* const file : {"/cpuset.effective_cpus", "/cpuset.cpus.effective"}) {
      const auto list = ReadFileAt(root_.get(), "." + name + file);
      if (!list.ok()) continue;
      ASSIGN_OR_RETURN(masks_[name], ParseList(*list));
      return masks_[name];
    }
    return masks_[name] = Mask();
  }

 private:
  Status OpenRoot() {
    if (root_) return OkStatus();
    ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/thread-self/cgroup"));
    ASSIGN_OR_RETURN(const CgroupSet set, ParseCgroups(text));
    std::string controllers;  // version 2, unless a hierarchy of version 1 has it
    for (const CgroupMember& member : set) {
      std::string_view rest = member.controllers;
      while (!rest.empty()) {
        if (text::Cut(rest, ',') == "cpuset") controllers = member.controllers;
      }
    }
    ASSIGN_OR_RETURN(root_, OpenHierarchy(controllers));
    return OkStatus();
  }

  UniqueFd root_;
  std::map<std::string, Mask> masks_;
};

}  // namespace

Status ReadAffinities(std::vector<DumpedProcess>& processes) {
  ASSIGN_OR_RETURN(const std::string online,
                   ReadFileAt(AT_FDCWD, "/sys/devices/system/cpu/online"));
  ASSIGN_OR_RETURN(const Mask all, ParseList(online));
  Cpusets cpusets;
  for (DumpedProcess& process : processes) {
    if (process.zombie) continue;
    for (DumpedThread& thread : process.threads) {
      const pid_t tid = thread.frozen->tid();
      ASSIGN_OR_RETURN(Mask mask, MaskOf(tid));
      if (mask == all) continue;
      const Result<Mask> given = cpusets.Of(tid);
      if (given.ok() && mask == *given) continue;
      thread.core.mutable_thread_core()->set_stasis_processors(std::move(mask));
    }
  }
  return OkStatus();
}

Status RestoreAffinity(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes) {
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  if (!core.has_stasis_processors()) return OkStatus();
  const Mask wanted = Trimmed(core.stasis_processors().substr(0, kMaxBytes));
  // The kernel takes words.
  Mask words = wanted;
  words.resize((words.size() + 7) / 8 * 8, '\0');
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.Put(std::as_bytes(std::span(words))));
  const Status status =
      remote.Call("sched_setaffinity", SYS_sched_setaffinity, 0, words.size(), at).status();
  if (!status.ok() && ErrnoOf(status) != EINVAL) return status;
  ASSIGN_OR_RETURN(const Mask now, MaskOf(remote.tracee().tid()));
  if (now != wanted) {
    notes.push_back("tid " + std::to_string(thread.tid) +
                    ": not all of the processors that it was bound to are here");
  }
  return OkStatus();
}

}  // namespace stasis::engine
