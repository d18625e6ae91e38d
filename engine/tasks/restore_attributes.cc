// Source  prctl(2), sigaltstack(2), set_robust_list(2), sched_setattr(2), getrlimit(2), membarrier(2),
//         Documentation/userspace-api/rseq.rst; tested on 6.18
// Rule    All of it is done by the process itself, so that the kernel grants what the container may have
//         and refuses the rest.
// Rule    A thread is born with its creator's name, without alternate stack, robust list and death signal
//         (copy_process() in kernel/fork.c): what it is to have like that costs no call.
#include "engine/tasks/restore_attributes.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/restore_files.h"
#include "engine/proc/task.h"
#include "engine/proc/text.h"
#include "engine/tasks/affinity.h"
#include "engine/tasks/clone_task.h"
#include "engine/tasks/process_tree.h"
#include "engine/tasks/settings.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/together.h"
#include "engine/tracee/waits.h"

namespace stasis::engine {
namespace {

constexpr unsigned long kThreadFlags =
    CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
constexpr int kRlimits = 16;

// struct robust_list_head has one size on all 64-bit kernels, set_robust_list(2).
constexpr std::uint32_t kRobustListBytes = 24;

Status RestoreLimits(RestoredProcess& process, Notes& notes) {
  RemoteSyscalls& remote = *process.remote;
  const auto& limits = process.image->leader().core.tc().rlimits();
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "limits"));
  ASSIGN_OR_RETURN(const auto live, ParseLimits(text));
  for (int i = 0; i < limits.rlimits_size() && i < kRlimits; ++i) {
    rlimit64 wanted = {limits.rlimits(i).cur(), limits.rlimits(i).max()};
    const ResourceLimit& now = live[static_cast<std::size_t>(i)];
    if (wanted.rlim_cur == now.soft && wanted.rlim_max == now.hard) continue;
    // The hard limit is the live container's to give: only CAP_SYS_RESOURCE raises it.
    if (wanted.rlim_max > now.hard) {
      if (wanted.rlim_cur > now.hard) {
        notes.push_back("pid " + std::to_string(process.image->pid()) + ": resource limit " +
                        std::to_string(i) + " is " + std::to_string(now.hard) + ", was " +
                        std::to_string(wanted.rlim_cur));
      }
      wanted.rlim_max = now.hard;
      wanted.rlim_cur = std::min(wanted.rlim_cur, now.hard);
    }
    remote.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(wanted));
    RETURN_IF_ERROR(remote.Call("prlimit64", SYS_prlimit64, 0, i, at, 0).status());
  }
  return OkStatus();
}

Status RestoreProcessFlags(RestoredProcess& process) {
  RemoteSyscalls& remote = *process.remote;
  const image::TaskCoreEntry& task = process.image->leader().core.tc();
  if (process.image->mm.thp_disabled()) {
    // Linux 6.18 shows its flags beside the 1; before, all but 0 was the same.
    const std::uint32_t flags = task.stasis_no_huge_pages() & ~1u;
    RETURN_IF_ERROR(
        remote.Call("PR_SET_THP_DISABLE", SYS_prctl, PR_SET_THP_DISABLE, 1, flags, 0, 0).status());
  }
  if (task.child_subreaper()) {
    RETURN_IF_ERROR(
        remote.Call("PR_SET_CHILD_SUBREAPER", SYS_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            .status());
  }
  for (int bit = 0; bit < 32; ++bit) {
    if ((task.membarrier_registration_mask() >> bit & 1) == 0) continue;
    RETURN_IF_ERROR(remote.Call("membarrier", SYS_membarrier, 1u << bit, 0, 0).status());
  }
  return OkStatus();
}

// The path counts from the root of the tree, which the process still has.
Status ChangeFolder(RestoredProcess& process, const CheckpointImages& images,
                    const PathlessFiles& pathless) {
  RemoteSyscalls& remote = *process.remote;
  const std::uint32_t id = process.image->fs.cwd_id();
  if (const auto deleted = pathless.find(id); deleted != pathless.end()) {
    ASSIGN_OR_RETURN(const int number, SendInto(process, deleted->second.get()));
    RETURN_IF_ERROR(remote.Call("fchdir", SYS_fchdir, number).status());
    return remote.Call("close", SYS_close, number).status();
  }
  remote.ResetArguments();
  const std::string cwd = images.Path(id);
  ASSIGN_OR_RETURN(const std::uint64_t path, remote.Put(cwd));
  return remote.Call("chdir " + cwd, SYS_chdir, path).status();
}

Status RestoreFolder(RestoredProcess& process, const CheckpointImages& images,
                     const PathlessFiles& pathless) {
  RETURN_IF_ERROR(ChangeFolder(process, images, pathless));
  RemoteSyscalls& remote = *process.remote;
  return remote.Call("umask", SYS_umask, process.image->fs.umask()).status();
}

// struct sched_attr, sched_setattr(2).
struct SchedAttr {
  std::uint32_t size = 56, policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t priority = 0;
  std::uint64_t runtime = 0, deadline = 0, period = 0;
  std::uint32_t utilization_min = 0, utilization_max = 0;
};
static_assert(sizeof(SchedAttr) == 56);

Status RestoreUtilization(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes) {
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  if (!core.has_stasis_utilization_max()) return OkStatus();
  constexpr std::uint64_t kKeepAll = 0x08 | 0x10, kClamps = 0x20 | 0x40;  // SCHED_FLAG_*
  SchedAttr wanted;
  wanted.flags = kKeepAll | kClamps;
  wanted.utilization_min = core.stasis_utilization_min();
  wanted.utilization_max = core.stasis_utilization_max();
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(wanted));
  const Status status = remote.Call("sched_setattr", SYS_sched_setattr, 0, at, 0).status();
  if (!status.ok()) {
    notes.push_back("tid " + std::to_string(thread.tid) + ": its utilization clamps are not set (" +
                    Message(status) + ")");
  }
  return OkStatus();
}

Status RestoreScheduling(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes) {
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  constexpr std::uint32_t kResetOnFork = 0x40000000;
  SchedAttr wanted;
  wanted.policy = core.sched_policy() & ~kResetOnFork;
  wanted.flags = (core.sched_policy() & kResetOnFork) != 0 ? 1 : 0;  // SCHED_FLAG_RESET_ON_FORK
  wanted.nice = core.sched_nice();
  wanted.priority = core.sched_prio();
  if (wanted.policy == SCHED_OTHER && wanted.nice == 0 && wanted.flags == 0) return OkStatus();
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(wanted));
  const Status status = remote.Call("sched_setattr", SYS_sched_setattr, 0, at, 0).status();
  if (ErrnoOf(status) == EPERM) {
    notes.push_back("tid " + std::to_string(thread.tid) + ": scheduling policy " +
                    std::to_string(wanted.policy) + ", nice " + std::to_string(wanted.nice) +
                    " is not granted here (CAP_SYS_NICE)");
    return OkStatus();
  }
  return status;
}

const std::string& NameOf(const ThreadImage& thread) {
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  return core.has_comm() ? core.comm() : thread.core.tc().comm();
}

Status RestoreName(const ThreadImage& thread, RemoteSyscalls& remote) {
  ASSIGN_OR_RETURN(const std::uint64_t comm, remote.Put(NameOf(thread)));
  return remote.Call("PR_SET_NAME", SYS_prctl, PR_SET_NAME, comm).status();
}

// What nearly every thread has.
void AddUsual(const ThreadImage& thread, const ThreadImage& leader, CallBatch& batch) {
  constexpr std::uint64_t kHere = CallBatch::kHere;
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  const bool is_new = &thread != &leader;
  // The leader's came before its threads were made.
  if (is_new && NameOf(thread) != NameOf(leader)) {
    std::array<char, 16> name = {};  // TASK_COMM_LEN, with the NUL
    std::ranges::copy(NameOf(thread).substr(0, name.size() - 1), name.begin());
    batch.AddGiving("PR_SET_NAME", SYS_prctl, {PR_SET_NAME, kHere}, name);
  }
  batch.Add("set_tid_address", SYS_set_tid_address, {thread.core.thread_info().clear_tid_addr()});
  const bool has_no_list = is_new && core.futex_rla() == 0;
  if (core.futex_rla_len() == kRobustListBytes && !has_no_list) {
    batch.Add("set_robust_list", SYS_set_robust_list, {core.futex_rla(), core.futex_rla_len()});
  }
  const bool has_no_stack = is_new && core.sas().ss_sp() == 0 && core.sas().ss_size() == 0 &&
                            (core.sas().ss_flags() & ~std::uint32_t{SS_ONSTACK}) == SS_DISABLE;
  if (core.has_sas() && !has_no_stack) {
    stack_t stack = {};
    stack.ss_sp = reinterpret_cast<void*>(core.sas().ss_sp());
    stack.ss_size = core.sas().ss_size();
    // SS_ONSTACK is a report, not a request; the thread may well stand on it.
    stack.ss_flags = static_cast<int>(core.sas().ss_flags() & ~std::uint32_t{SS_ONSTACK});
    batch.AddGiving("sigaltstack", SYS_sigaltstack, {kHere, 0}, stack);
  }
  if (core.has_rseq_entry() && core.rseq_entry().rseq_abi_pointer() != 0) {
    const image::RseqEntry& rseq = core.rseq_entry();
    batch.Add("rseq", SYS_rseq,
              {rseq.rseq_abi_pointer(), rseq.rseq_abi_size(), 0, rseq.signature()});
  }
}

// What few have, and not every container grants.
Status RestoreUnusual(const ThreadImage& thread, RemoteSyscalls& remote, Notes& notes) {
  remote.ResetArguments();
  RETURN_IF_ERROR(RestoreScheduling(thread, remote, notes));
  RETURN_IF_ERROR(RestoreUtilization(thread, remote, notes));
  RETURN_IF_ERROR(RestoreAffinity(thread, remote, notes));
  return RestoreSettings(thread, remote, notes);
}

Status RestoreThreads(RestoredProcess& process, Notes& notes) {
  const ThreadImage& leader = process.image->leader();
  CallBatch batch;
  AddUsual(leader, leader, batch);
  ASSIGN_OR_RETURN(const OneRun how, RunOf(process));
  RETURN_IF_ERROR(batch.Begin(*process.remote, how));
  RETURN_IF_ERROR(batch.End());
  RETURN_IF_ERROR(RestoreUnusual(leader, *process.remote, notes));
  if (process.others.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const arch::Registers model, arch::Read(process.others.front().tracee.tid()));
  const auto with_tid = [](const Status& status, const RestoredProcess::Thread& thread) {
    return Annotate(status, "tid " + std::to_string(thread.image->tid));
  };
  // Of the registers of a new thread none is needed again.
  const auto begin = [&](RestoredProcess::Thread& thread,
                         const CallPlace& place) -> Result<RemoteSyscalls> {
    Result<RemoteSyscalls> remote = RemoteSyscalls::Begin(thread.tracee, place, model, 0);
    if (!remote.ok()) return with_tid(remote.status(), thread);
    return remote;
  };
  const auto ask = [&](RestoredProcess::Thread& thread, CallBatch& calls) {
    AddUsual(*thread.image, leader, calls);
    return OneRun{.signal = how.signal, .ids = {how.ids.first, thread.image->tid}};
  };
  const auto end = [&](RestoredProcess::Thread& thread, RemoteSyscalls& remote, Status made) {
    if (made.ok()) made = RestoreUnusual(*thread.image, remote, notes);
    remote.Abandon();  // its registers are set when all is done
    return with_tid(made, thread);
  };
  return CallTogether(std::span(process.others), process.area,
                      arch::SignalFrame(model, 0, 0).size(), begin, ask, end);
}

// A file under /proc/self that the process writes by itself, so that the kernel judges its rights.
Status WriteOwnFile(RestoredProcess& process, const std::string& path, const std::string& text) {
  RemoteSyscalls& remote = *process.remote;
  ASSIGN_OR_RETURN(const int fd, OpenInProcess(process, path, O_WRONLY));
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.Put(text));
  const Status written = remote.Call("write " + path, SYS_write, fd, at, text.size()).status();
  RETURN_IF_ERROR(remote.Call("close", SYS_close, fd).status());
  return written;
}

// Of a container's first process its runtime has set it. To lower it takes CAP_SYS_RESOURCE.
Status RestoreOomScore(RestoredProcess& process, Notes& notes) {
  const image::TaskCoreEntry& task = process.image->leader().core.tc();
  if (!task.has_oom_score_adj()) return OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "oom_score_adj"));
  const int live = std::atoi(text.c_str());
  if (live == task.oom_score_adj()) return OkStatus();
  const Status written =
      WriteOwnFile(process, "/proc/self/oom_score_adj", std::to_string(task.oom_score_adj()));
  if (!written.ok()) {
    notes.push_back("pid " + std::to_string(process.image->pid()) + ": oom_score_adj stays " +
                    std::to_string(live) + ", was " + std::to_string(task.oom_score_adj()));
  }
  return OkStatus();
}

// Nothing can be unmapped, remapped or protected otherwise afterwards: last of all that is done to areas.
Status SealMemory(RestoredProcess& process) {
  constexpr long kMseal = 462;  // Linux 6.10
  for (const image::VmaEntry& vma : process.image->mm.vmas()) {
    if (!vma.stasis_sealed()) continue;
    const Status status =
        process.remote->Call("mseal", kMseal, vma.start(), vma.end() - vma.start(), 0).status();
    if (ErrnoOf(status) == ENOSYS) {
      return FailedPrecondition("sealed memory: this kernel has none (mseal, Linux 6.10)");
    }
    RETURN_IF_ERROR(status);
  }
  return OkStatus();
}

// Only the process itself may write it, credentials aside (fs/proc/base.c, proc_loginuid_write()).
Status RestoreLoginUid(RestoredProcess& process, Notes& notes) {
  const image::TaskCoreEntry& task = process.image->leader().core.tc();
  const auto live = ReadFileAt(process.proc.get(), "loginuid");  // CONFIG_AUDIT
  const std::string wanted = std::to_string(task.loginuid());
  if (!task.has_loginuid() || !live.ok() || text::Trim(*live) == wanted) return OkStatus();
  const Status status = WriteOwnFile(process, "/proc/self/loginuid", wanted);
  if (!status.ok()) {
    notes.push_back("pid " + std::to_string(process.image->pid()) + ": the login uid stays " +
                    *live + " (" + Message(status) + ")");
  }
  return OkStatus();
}

// Begins the wait that was under way, for what was left of it, and interrupts it at once: the kernel then
// has the notes that it had. Of the program nothing is changed, but for what the kernel writes to `rest`.
Status BeginWait(const ThreadImage& thread, RemoteSyscalls& remote,
                 std::optional<arch::SystemCall>& begun) {
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  if (!core.has_stasis_wait_left_nsec()) return OkStatus();
  arch::SystemCall call = arch::CallOf(thread.core);
  const auto wait = TimedWaitOf(call);
  if (!wait) return InvalidArgument("core image: a time is left of a call that has none");
  constexpr std::uint64_t kSecond = 1'000'000'000, kMillisecond = 1'000'000;
  const std::uint64_t left = core.stasis_wait_left_nsec();
  std::array<std::uint64_t, 6> arguments = call.arguments;
  if (wait->in_milliseconds) {
    const std::uint64_t limit = arguments[wait->limit];
    arguments[wait->limit] = std::min(limit, left / kMillisecond + (left % kMillisecond != 0));
  } else {
    const timespec time = {static_cast<time_t>(left / kSecond), static_cast<long>(left % kSecond)};
    ASSIGN_OR_RETURN(arguments[wait->limit], remote.PutValue(time));
  }
  ASSIGN_OR_RETURN(call.result, remote.CallInterrupted(call.number, arguments));
  begun = call;
  return OkStatus();
}

}  // namespace

Status MakeThreads(RestoredProcess& process, PidReserver& reserver) {
  const std::vector<ThreadImage>& threads = process.image->threads;
  process.remote->ResetArguments();
  RETURN_IF_ERROR(RestoreName(threads.front(), *process.remote));
  std::vector<pid_t> wanted;
  for (const ThreadImage& thread : std::span(threads).subspan(1)) wanted.push_back(thread.tid);
  std::vector<Tracee> made;
  Status status = CloneThreads(process, reserver, kThreadFlags, wanted, made);
  process.others.reserve(made.size());
  for (std::size_t i = 0; i < made.size(); ++i) {
    process.others.push_back({.image = &threads[i + 1], .tracee = std::move(made[i])});
  }
  return status;
}

Status RestoreRoot(RestoredProcess& process, const CheckpointImages& images) {
  const std::string root = images.Path(process.image->fs.root_id());
  if (root == "/") return OkStatus();
  RemoteSyscalls& remote = *process.remote;
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t path, remote.Put(root));
  return remote.Call("chroot " + root, SYS_chroot, path).status();
}

Status RestoreAttributes(RestoredProcess& process, const CheckpointImages& images,
                         const PathlessFiles& pathless, Notes& notes) {
  RETURN_IF_ERROR(RestoreFolder(process, images, pathless));
  RETURN_IF_ERROR(RestoreProcessFlags(process));
  RETURN_IF_ERROR(RestoreOomScore(process, notes));
  RETURN_IF_ERROR(RestoreLoginUid(process, notes));
  RETURN_IF_ERROR(RestoreThreads(process, notes));
  RETURN_IF_ERROR(SealMemory(process));
  RETURN_IF_ERROR(RestoreSettings(process));
  return RestoreLimits(process, notes);
}

Status BeginWaits(RestoredProcess& process) {
  process.remote->ResetArguments();
  RETURN_IF_ERROR(BeginWait(process.image->leader(), *process.remote, process.wait));
  for (RestoredProcess::Thread& thread : process.others) {
    if (!thread.image->core.thread_core().has_stasis_wait_left_nsec()) continue;
    RETURN_IF_ERROR(RunIn(process, thread, [&](const ThreadImage& image, RemoteSyscalls& remote) {
      return BeginWait(image, remote, thread.wait);
    }));
  }
  return OkStatus();
}

Status SetFinalRegisters(RestoredProcess& process) {
  process.remote->Abandon();
  const auto set = [](const ThreadImage& thread, std::optional<arch::SystemCall> call,
                      Tracee& tracee) -> Status {
    ASSIGN_OR_RETURN(const arch::Registers model, arch::Read(tracee.tid()));
    const image::ThreadCoreEntry& core = thread.core.thread_core();
    image::CoreEntry whole = thread.core;
    arch::PutExtended(thread.extended, whole);
    ASSIGN_OR_RETURN(arch::Registers wanted, arch::FromImage(whole, model));
    if (arch::IsIssuedAgain(core.stasis_call_result())) {
      // It may be that a pending signal is to make it EINTR: the kernel decides.
      call = arch::CallOf(thread.core);
      call->result = core.stasis_call_result();
    }
    if (call) arch::PutAtEnd(*call, wanted.general);
    RETURN_IF_ERROR(arch::Write(tracee.tid(), wanted));
    const std::uint64_t mask =
        core.has_blk_sigset() ? core.blk_sigset() : thread.core.tc().blk_sigset();
    RETURN_IF_ERROR(tracee.SetSignalMask(mask));
    // A critical section that is not to be aborted by signals goes on: the kernel cleared this pointer
    // while the thread ran our calls.
    if (core.rseq_entry().rseq_cs_pointer() != 0) {
      constexpr std::uint64_t kRseqCsOffset = 8;  // struct rseq, uapi/linux/rseq.h
      const std::uint64_t pointer = core.rseq_entry().rseq_cs_pointer();
      RETURN_IF_ERROR(WriteMemory(tracee.tid(),
                                  core.rseq_entry().rseq_abi_pointer() + kRseqCsOffset,
                                  std::as_bytes(std::span(&pointer, 1))));
    }
    // Makes the kernel look at an interrupted call when the thread is let go (see RemoteSyscalls::Finish).
    return call ? tracee.Interrupt() : OkStatus();
  };
  RETURN_IF_ERROR(set(process.image->leader(), process.wait, process.leader));
  // Only now: the calls for it need a stack of the process's own, not one in the area that goes.
  RETURN_IF_ERROR(RemoveArea(process.leader, process.area));
  for (RestoredProcess::Thread& thread : process.others) {
    RETURN_IF_ERROR(Annotate(set(*thread.image, thread.wait, thread.tracee),
                             "tid " + std::to_string(thread.image->tid)));
  }
  return OkStatus();
}

}  // namespace stasis::engine
