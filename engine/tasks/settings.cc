// Source  prctl(2) PR_SET_TIMERSLACK, PR_SET_MDWE, PR_SET_MEMORY_MERGE, PR_MCE_KILL, PR_SET_TSC; ioprio_set(2), personality(2), core(5),
//         proc_pid_timerslack_ns(5); tested on 6.18
// Rule    A thread under a real-time policy has no slack, and its file says 0; its own setting comes back
//         with another policy and cannot be seen until then (kernel/sched/syscalls.c).
// Rule    ioprio_get(2) of a thread that never set one gives IOPRIO_CLASS_NONE, or from Linux 5.18 on what
//         its nice value stands for, with the same class 0.
// Rule    execve(2) keeps the personality; what it changes at once (READ_IMPLIES_EXEC) concerns new
//         mappings only.
// Rule    CRIU 4.2 reads the hexadecimal /proc/PID/personality as a decimal number, and restores none: only
//         what we wrote ourselves is put into force.
// Rule    What a thread said on machine checks, on being a flusher of I/O and on speculation is seen in its
//         flags and status; on the time stamp counter (PR_SET_TSC) only it can tell.
// Rule    Memory-deny-write-execute can be set and never taken back. It is inherited unless asked
//         otherwise, so the leader's alone is asked for: it is a flag of the memory, not of a thread.
#include "engine/tasks/settings.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>

#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/proc/text.h"

#ifndef PR_SET_MEMORY_MERGE  // Linux 6.4
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#ifndef PR_SET_MDWE  // Linux 6.3
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

namespace stasis::engine {
namespace {

constexpr std::uint64_t kDefaultSlackNs = 50'000;       // init_task, include/linux/init_task.h
constexpr std::uint32_t kDefaultCoreDumpFilter = 0x33;  // core(5)
constexpr int kIoPriorityOfOne = 1;                     // IOPRIO_WHO_PROCESS
constexpr int kIoClassShift = 13;

}  // namespace

namespace {

// include/linux/sched.h; what /proc/TID/stat shows of them.
constexpr std::uint32_t kMachineCheckSet = 0x80, kMachineCheckEarly = 0x0800'0000;
constexpr std::uint32_t kIoFlusher = 0x0008'0000 | 0x0010'0000;

// As PR_SET_SPECULATION_CTRL takes it; 0 for what is not the thread's own doing.
std::uint32_t SpeculationOf(std::string_view text) {
  if (text == "thread force mitigated" || text == "conditional force disabled") {
    return PR_SPEC_FORCE_DISABLE;
  }
  return text == "thread mitigated" || text == "conditional disabled" ? PR_SPEC_DISABLE : 0;
}

Status ReadProcessorSettings(const FrozenThread& thread, image::ThreadCoreEntry& core) {
  ASSIGN_OR_RETURN(const std::string text, thread.files.Read(TaskFiles::kStat));
  ASSIGN_OR_RETURN(const TaskStat stat, ParseTaskStat(text));
  if ((stat.flags & kMachineCheckSet) != 0) {
    core.set_stasis_machine_check((stat.flags & kMachineCheckEarly) != 0 ? PR_MCE_KILL_EARLY
                                                                         : PR_MCE_KILL_LATE);
  }
  if ((stat.flags & kIoFlusher) == kIoFlusher) core.set_stasis_io_flusher(true);
  if (const std::uint32_t value = SpeculationOf(thread.status.store_bypass)) {
    core.set_stasis_store_bypass(value);
  }
  if (const std::uint32_t value = SpeculationOf(thread.status.indirect_branch)) {
    core.set_stasis_indirect_branch(value);
  }
  return OkStatus();
}

}  // namespace

Status ReadSettings(const FrozenThread& thread, image::ThreadCoreEntry& core) {
  const auto text = thread.files.Read(TaskFiles::kTimerSlack);
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const auto slack, text::Number<std::uint64_t>(text::Trim(*text)));
  if (slack != kDefaultSlackNs && slack != 0) core.set_stasis_timer_slack_ns(slack);
  RETURN_IF_ERROR(ReadProcessorSettings(thread, core));
  const long priority = ::syscall(SYS_ioprio_get, kIoPriorityOfOne, thread.tid());
  if (priority < 0) {
    return SyscallError(errno, "ioprio_get");
  }
  if (priority >> kIoClassShift != 0) {
    core.set_stasis_io_priority(static_cast<std::uint32_t>(priority));
  }
  return OkStatus();
}

Status ReadSettings(const FrozenProcess& process, image::TaskCoreEntry& core) {
  if (core.personality() != 0) core.set_stasis_personality(core.personality());
  const auto text = ReadFileAt(process.proc.get(), "coredump_filter");
  if (text.status().code() == StatusCode::kNotFound) return OkStatus();  // CONFIG_ELF_CORE
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(const auto filter, text::Number<std::uint32_t>(text::Trim(*text), 16));
  if (filter != kDefaultCoreDumpFilter) core.set_stasis_core_dump_filter(filter);
  return OkStatus();
}

void AskSettings(CallBatch& batch, image::TaskCoreEntry& core) {
  // An older kernel says EINVAL.
  batch.AddOptional("prctl GET_MDWE", SYS_prctl, {PR_GET_MDWE}, [&core](std::int64_t deny) {
    if (deny != 0) core.set_stasis_deny_write_execute(static_cast<std::uint32_t>(deny));
    return OkStatus();
  });
  batch.AddOptional("prctl GET_MEMORY_MERGE", SYS_prctl, {PR_GET_MEMORY_MERGE},
                    [&core](std::int64_t merge) {
                      if (merge != 0) core.set_stasis_memory_merge(true);
                      return OkStatus();
                    });
}

namespace {

Status RestoreProcessorSettings(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes) {
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  const auto set = [&](bool wanted, const char* name, auto... arguments) -> Status {
    if (!wanted) return OkStatus();
    const Status status = remote.Call(name, SYS_prctl, arguments...).status();
    const int error = ErrnoOf(status);
    // Not granted here, or this processor has no such thing.
    if (error != EPERM && error != ENXIO && error != ENODEV && error != EINVAL) return status;
    notes.push_back("tid " + std::to_string(thread.tid) + ": " + Message(status));
    return OkStatus();
  };
  RETURN_IF_ERROR(set(core.has_stasis_machine_check(), "PR_MCE_KILL", PR_MCE_KILL, PR_MCE_KILL_SET,
                      core.stasis_machine_check(), 0, 0));
  RETURN_IF_ERROR(
      set(core.stasis_io_flusher(), "PR_SET_IO_FLUSHER", PR_SET_IO_FLUSHER, 1, 0, 0, 0));
  RETURN_IF_ERROR(set(core.has_stasis_store_bypass(), "PR_SET_SPECULATION_CTRL",
                      PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, core.stasis_store_bypass(), 0,
                      0));
  RETURN_IF_ERROR(set(core.has_stasis_indirect_branch(), "PR_SET_SPECULATION_CTRL",
                      PR_SET_SPECULATION_CTRL, PR_SPEC_INDIRECT_BRANCH,
                      core.stasis_indirect_branch(), 0, 0));
  return set(core.has_stasis_time_stamp_counter(), "PR_SET_TSC", PR_SET_TSC,
             core.stasis_time_stamp_counter(), 0, 0, 0);
}

}  // namespace

Status RestoreSettings(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes) {
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  RETURN_IF_ERROR(RestoreProcessorSettings(thread, remote, notes));
  if (core.has_stasis_timer_slack_ns()) {
    RETURN_IF_ERROR(remote
                        .Call("PR_SET_TIMERSLACK", SYS_prctl, PR_SET_TIMERSLACK,
                              core.stasis_timer_slack_ns(), 0, 0, 0)
                        .status());
  }
  if (!core.has_stasis_io_priority()) return OkStatus();
  const Status status =
      remote.Call("ioprio_set", SYS_ioprio_set, kIoPriorityOfOne, 0, core.stasis_io_priority())
          .status();
  if (ErrnoOf(status) != EPERM) return status;
  notes.push_back("tid " + std::to_string(thread.tid) + ": I/O priority " +
                  std::to_string(core.stasis_io_priority()) +
                  " is not granted here (CAP_SYS_NICE)");
  return OkStatus();
}

Status RestoreSettings(RestoredProcess& process) {
  RemoteSyscalls& remote = *process.remote;
  const image::TaskCoreEntry& core = process.image->leader().core.tc();
  if (core.has_stasis_personality()) {
    RETURN_IF_ERROR(
        remote.Call("personality", SYS_personality, core.stasis_personality()).status());
  }
  if (core.has_stasis_core_dump_filter()) {
    ASSIGN_OR_RETURN(const UniqueFd file, OpenAt(process.proc.get(), "coredump_filter", O_WRONLY));
    RETURN_IF_ERROR(WriteAll(file.get(), std::to_string(core.stasis_core_dump_filter())));
  }
  if (core.stasis_memory_merge()) {
    RETURN_IF_ERROR(
        remote.Call("PR_SET_MEMORY_MERGE", SYS_prctl, PR_SET_MEMORY_MERGE, 1, 0, 0, 0).status());
  }
  if (!core.has_stasis_deny_write_execute()) return OkStatus();
  return remote
      .Call("PR_SET_MDWE", SYS_prctl, PR_SET_MDWE, core.stasis_deny_write_execute(), 0, 0, 0)
      .status();
}

}  // namespace stasis::engine
