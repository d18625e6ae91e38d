// Source  ptrace(2), proc_pid_status(5), sched_getattr(2), get_robust_list(2); tested on 6.18
// Rule    Registers, signal masks and rseq state are read before anything runs in a thread: the
//         kernel clears rseq_cs at the next return to user mode (kernel/rseq.c).
// Rule    /proc/PID/limits needs no right over the process; prlimit(2) on another user's process
//         needs CAP_SYS_RESOURCE.
#include "engine/tasks/dump_outside.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/proc/text.h"
#include "engine/tasks/dump_inside.h"
#include "engine/tasks/dump_tree.h"
#include "engine/tasks/security_label.h"
#include "engine/tasks/settings.h"
#include "engine/tracee/rseq.h"
#include "engine/tracee/waits.h"

namespace stasis::engine {
namespace {

struct PeekArgument {
  std::uint64_t offset;
  std::uint32_t flags;
  std::int32_t count;
};
constexpr std::uint32_t kPeekShared = 1;
constexpr std::size_t kSiginfoBytes = 128;

struct SyscallUserDispatch {
  std::uint64_t mode, selector, offset, length;
};
constexpr int kGetSyscallUserDispatch = 0x4211;  // Linux 6.5

struct SchedulerAttributes {
  std::uint32_t size, policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t runtime, deadline, period;
  std::uint32_t utilization_min, utilization_max;
};
static_assert(sizeof(SchedulerAttributes) == 56);  // SCHED_ATTR_SIZE_VER1
constexpr std::uint32_t kResetOnFork = 0x40000000;
constexpr std::uint32_t kSchedDeadline = 6;
constexpr std::uint32_t kNoLoginUid = ~std::uint32_t{0};

long Ptrace(int request, pid_t tid, std::uint64_t address, void* data) {
  return ::ptrace(static_cast<__ptrace_request>(request), tid, address, data);
}

Status ReadRseq(DumpedThread& thread) {
  const pid_t tid = thread.frozen->tid();
  ASSIGN_OR_RETURN(const RseqConfiguration configuration, ReadRseqConfiguration(tid));
  image::RseqEntry& entry = *thread.core.mutable_thread_core()->mutable_rseq_entry();
  entry.set_rseq_abi_pointer(configuration.pointer);
  entry.set_rseq_abi_size(configuration.size);
  entry.set_signature(configuration.signature);
  ASSIGN_OR_RETURN(thread.sequence_aborted,
                   AbortSequence(tid, configuration, thread.registers.general));
  return OkStatus();
}

Status ReadPendingSignals(pid_t tid, std::uint32_t flags, image::SignalQueueEntry& queue) {
  std::array<char, 32 * kSiginfoBytes> infos;
  PeekArgument argument = {.offset = 0, .flags = flags, .count = 32};
  while (true) {
    const long count =
        Ptrace(PTRACE_PEEKSIGINFO, tid, reinterpret_cast<std::uint64_t>(&argument), infos.data());
    if (count < 0) {
      return SyscallError(errno, "ptrace PEEKSIGINFO");
    }
    if (count == 0) return OkStatus();
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      queue.add_signals()->set_siginfo(infos.data() + i * kSiginfoBytes, kSiginfoBytes);
    }
    argument.offset += static_cast<std::uint64_t>(count);
  }
}

Status ReadScheduling(pid_t tid, image::ThreadCoreEntry& core) {
  SchedulerAttributes attributes = {};
  if (::syscall(SYS_sched_getattr, tid, &attributes, sizeof(attributes), 0) != 0) {
    return SyscallError(errno, "sched_getattr");
  }
  if (attributes.policy == kSchedDeadline) return Unimplemented("runs under SCHED_DEADLINE");
  core.set_sched_nice(attributes.nice);
  core.set_sched_policy(attributes.policy | ((attributes.flags & 1) != 0 ? kResetOnFork : 0));
  const bool real_time = attributes.policy == SCHED_FIFO || attributes.policy == SCHED_RR;
  if (real_time) core.set_sched_prio(attributes.priority);
  // Unasked, real-time threads are to get all of a processor (sysctl sched_util_clamp_min_rt_default).
  constexpr std::uint32_t kAll = 1024;  // SCHED_CAPACITY_SCALE
  const bool clamped =
      attributes.utilization_max != kAll ||
      (attributes.utilization_min != 0 && !(real_time && attributes.utilization_min == kAll));
  const bool has_clamps = attributes.utilization_max != 0;  // CONFIG_UCLAMP_TASK
  if (has_clamps && clamped) {
    core.set_stasis_utilization_min(attributes.utilization_min);
    core.set_stasis_utilization_max(attributes.utilization_max);
  }
  return OkStatus();
}

Status ReadRobustList(pid_t tid, image::ThreadCoreEntry& core) {
  std::uint64_t head = 0;
  std::size_t length = 0;
  if (::syscall(SYS_get_robust_list, tid, &head, &length) != 0) {
    return SyscallError(errno, "get_robust_list");
  }
  core.set_futex_rla(head);
  core.set_futex_rla_len(static_cast<std::uint32_t>(length));
  return OkStatus();
}

// `secbits` is known only inside.
void ReadCredentials(const TaskStatus& status, image::CredsEntry& creds) {
  creds.set_uid(status.uid[0]), creds.set_gid(status.gid[0]);
  creds.set_euid(status.uid[1]), creds.set_egid(status.gid[1]);
  creds.set_suid(status.uid[2]), creds.set_sgid(status.gid[2]);
  creds.set_fsuid(status.uid[3]), creds.set_fsgid(status.gid[3]);
  const auto words = [](std::uint64_t set, auto* field) {
    field->Add(static_cast<std::uint32_t>(set));
    field->Add(static_cast<std::uint32_t>(set >> 32));
  };
  words(status.cap_inheritable, creds.mutable_cap_inh());
  words(status.cap_permitted, creds.mutable_cap_prm());
  words(status.cap_effective, creds.mutable_cap_eff());
  words(status.cap_bounding, creds.mutable_cap_bnd());
  words(status.cap_ambient, creds.mutable_cap_amb());
  for (const std::uint32_t group : status.groups) creds.add_groups(group);
  if (status.no_new_privs) creds.set_no_new_privs(1);
}

Status RefuseUserDispatch(pid_t tid) {
  SyscallUserDispatch dispatch = {};
  // Before Linux 6.5 nobody can see it.
  if (Ptrace(kGetSyscallUserDispatch, tid, sizeof(dispatch), &dispatch) < 0) return OkStatus();
  if (dispatch.mode != 0) return Unimplemented("uses syscall user dispatch");
  return OkStatus();
}

// A timespec in the memory of `tid`; nothing when there is none.
std::optional<std::chrono::nanoseconds> ReadTime(pid_t tid, std::uint64_t address) {
  timespec time = {};
  if (address == 0 || !ReadMemory(tid, address, std::as_writable_bytes(std::span(&time, 1))).ok()) {
    return std::nullopt;
  }
  constexpr std::int64_t kLongest = std::int64_t{1} << 33;  // in nanoseconds it fits 64 bits
  if (time.tv_sec < 0 || time.tv_nsec < 0 || time.tv_nsec >= 1'000'000'000) return std::nullopt;
  return std::chrono::seconds(std::min<std::int64_t>(time.tv_sec, kLongest)) +
         std::chrono::nanoseconds(time.tv_nsec);
}

// How the call goes on that the stop interrupted; of one that waits for some time, what is left of that, at
// most: after a restore it is to wait no shorter than it was to. Where nobody knows, its time begins anew.
void ReadCall(const FrozenThread& frozen, const arch::GeneralRegisters& registers,
              image::ThreadCoreEntry& core) {
  const auto call = arch::CallAt(registers);
  if (!call) return;
  if (arch::IsIssuedAgain(call->result)) {
    core.set_stasis_call_result(static_cast<std::int32_t>(call->result));
  }
  if (call->result != arch::kRestartBlock) return;
  const auto wait = TimedWaitOf(*call);
  if (!wait) return;
  const std::uint64_t limit = call->arguments[wait->limit];
  std::optional<std::chrono::nanoseconds> left =
      wait->in_milliseconds ? std::chrono::milliseconds(static_cast<int>(limit))
                            : ReadTime(frozen.tid(), limit);
  // The kernel's own note is exact; it is the limit itself where both have one address.
  const auto rest =
      wait->rest == 0 ? std::nullopt : ReadTime(frozen.tid(), call->arguments[wait->rest]);
  if (rest) {
    left = rest;
  } else if (left && frozen.slept && !wait->of_processor) {
    left = std::max(*left - *frozen.slept, std::chrono::nanoseconds(1));
  }
  if (left) core.set_stasis_wait_left_nsec(static_cast<std::uint64_t>(left->count()));
}

Result<DumpedThread> ReadThread(FrozenThread& frozen) {
  const pid_t tid = frozen.tid();
  DumpedThread thread;
  thread.frozen = &frozen;
  ASSIGN_OR_RETURN(const arch::GeneralRegisters general, frozen.registers);
  ASSIGN_OR_RETURN(thread.registers, arch::ReadExtended(tid, general));
  image::ThreadCoreEntry& core = *thread.core.mutable_thread_core();
  ASSIGN_OR_RETURN(const std::uint64_t mask, frozen.tracee.SignalMask());
  core.set_blk_sigset(mask);
  ReadCall(frozen, thread.registers.general, core);
  RETURN_IF_ERROR(ReadRseq(thread));
  image::SignalQueueEntry pending;
  RETURN_IF_ERROR(ReadPendingSignals(tid, 0, pending));
  if (pending.signals_size() > 0) *core.mutable_signals_p() = std::move(pending);
  RETURN_IF_ERROR(RefuseUserDispatch(tid));
  RETURN_IF_ERROR(arch::CheckForImage(thread.registers));
  return thread;
}

// A number in a file of /proc/PID; `otherwise` when there is no such file.
template <typename T>
Result<T> ReadNumber(const FrozenProcess& process, const char* name, int base, T otherwise) {
  const Result<std::string> text = ReadFileAt(process.proc.get(), name);
  if (text.status().code() == StatusCode::kNotFound) return otherwise;
  RETURN_IF_ERROR(text.status());
  return text::Number<T>(text::Trim(*text), base);
}

Status ReadTaskCore(const FrozenProcess& process, image::TaskCoreEntry& core) {
  constexpr std::uint32_t kAlive = 1, kStopped = 3;
  core.set_task_state(kAlive);
  for (const FrozenThread& thread : process.threads) {
    if (thread.stop_signal == 0) continue;
    core.set_task_state(kStopped);
    core.set_stop_signo(static_cast<std::uint32_t>(thread.stop_signal));
  }
  core.set_exit_code(0);
  core.set_flags(process.stat.flags);
  core.set_comm(process.status.name);
  return ReadPendingSignals(process.threads.front().tid(), kPeekShared, *core.mutable_signals_s());
}

// A zombie has nothing but its end; what the format requires besides is zero.
DumpedThread ZombieCore(const FrozenProcess& process) {
  DumpedThread thread;
  thread.core.set_mtype(image::MARCH_X86_64);
  image::TaskCoreEntry& core = *thread.core.mutable_tc();
  constexpr std::uint32_t kDead = 2;
  core.set_task_state(kDead);
  core.set_exit_code(static_cast<std::uint32_t>(process.stat.exit_code));
  core.set_personality(0);
  core.set_flags(0);
  core.set_blk_sigset(0);
  core.set_comm(process.status.name);
  return thread;
}

void ReadMemoryBounds(const TaskStat& stat, image::MmEntry& mm) {
  mm.set_mm_start_code(stat.start_code);
  mm.set_mm_end_code(stat.end_code);
  mm.set_mm_start_data(stat.start_data);
  mm.set_mm_end_data(stat.end_data);
  mm.set_mm_start_stack(stat.start_stack);
  mm.set_mm_start_brk(stat.start_brk);
  mm.set_mm_arg_start(stat.arg_start);
  mm.set_mm_arg_end(stat.arg_end);
  mm.set_mm_env_start(stat.env_start);
  mm.set_mm_env_end(stat.env_end);
}

Status ReadAuxiliaryVector(const FrozenProcess& process, image::MmEntry& mm) {
  // CRIU has room for 44 words and puts the AT_NULL behind them itself.
  constexpr std::size_t kMaxWords = 44;
  ASSIGN_OR_RETURN(const std::string bytes, ReadFileAt(process.proc.get(), "auxv"));
  for (std::size_t i = 0; i + 16 <= bytes.size() && i / 8 < kMaxWords; i += 16) {
    std::array<std::uint64_t, 2> pair;
    std::memcpy(pair.data(), bytes.data() + i, sizeof(pair));
    if (pair[0] == 0) break;
    mm.add_mm_saved_auxv(pair[0]);
    mm.add_mm_saved_auxv(pair[1]);
  }
  return OkStatus();
}

}  // namespace

Result<DumpedProcess> ReadOutside(FrozenProcess& process) {
  DumpedProcess dumped;
  dumped.frozen = &process;
  dumped.zombie = process.zombie;
  if (process.zombie) {
    dumped.threads.push_back(ZombieCore(process));
    return dumped;
  }
  dumped.threads.reserve(process.threads.size());
  for (FrozenThread& frozen : process.threads) {
    Result<DumpedThread> thread = ReadThread(frozen);
    if (!thread.ok()) return Annotate(thread.status(), Name(frozen));
    dumped.threads.push_back(*std::move(thread));
    ASSIGN_OR_RETURN(const std::string label, ReadLabel(process.proc.get(), frozen.tid()));
    if (label.empty()) continue;
    dumped.threads.back().core.mutable_thread_core()->mutable_creds()->set_lsm_profile(label);
  }
  image::CoreEntry& leader = dumped.threads.front().core;
  RETURN_IF_ERROR(ReadTaskCore(process, *leader.mutable_tc()));
  leader.mutable_tc()->set_blk_sigset(leader.thread_core().blk_sigset());
  ReadMemoryBounds(process.stat, dumped.mm);
  dumped.fs.set_umask(process.status.umask);
  return dumped;
}

namespace {

void ShowIdsInside(const UserIds& ids, image::CoreEntry& core) {
  if (ids.are_ours()) return;
  image::CredsEntry& creds = *core.mutable_thread_core()->mutable_creds();
  creds.set_uid(ids.users.ToInside(creds.uid()));
  creds.set_euid(ids.users.ToInside(creds.euid()));
  creds.set_suid(ids.users.ToInside(creds.suid()));
  creds.set_fsuid(ids.users.ToInside(creds.fsuid()));
  creds.set_gid(ids.groups.ToInside(creds.gid()));
  creds.set_egid(ids.groups.ToInside(creds.egid()));
  creds.set_sgid(ids.groups.ToInside(creds.sgid()));
  creds.set_fsgid(ids.groups.ToInside(creds.fsgid()));
  for (std::uint32_t& group : *creds.mutable_groups()) group = ids.groups.ToInside(group);
  const bool has_login = core.has_tc() && core.tc().has_loginuid();
  if (!has_login || core.tc().loginuid() == kNoLoginUid) return;
  core.mutable_tc()->set_loginuid(ids.users.ToInside(core.tc().loginuid()));
}

}  // namespace

image::CoreEntry TakeCore(DumpedThread& thread, const UserIds& ids) {
  image::CoreEntry core = std::move(thread.core);
  if (thread.frozen == nullptr) return core;
  image::ThreadCoreEntry& of_thread = *core.mutable_thread_core();
  ReadCredentials(thread.frozen->status, *of_thread.mutable_creds());
  of_thread.set_comm(thread.frozen->status.name);
  of_thread.mutable_signals_p();  // of most threads there is none
  if (thread.in_kernel) TakeFromKernel(*thread.in_kernel, core);
  arch::ToImage(thread.registers, core);
  ShowIdsInside(ids, core);
  return core;
}

Status ReadByCalls(const FrozenThread& thread, image::ThreadCoreEntry& core) {
  RETURN_IF_ERROR(ReadScheduling(thread.tid(), core));
  return ReadRobustList(thread.tid(), core);
}

Status ReadFilesOfProc(const FrozenProcess& process, image::TaskCoreEntry& core,
                       image::MmEntry& mm) {
  ASSIGN_OR_RETURN(const auto personality,
                   ReadNumber<std::uint32_t>(process, "personality", 16, 0));
  core.set_personality(personality);
  ASSIGN_OR_RETURN(const auto score, ReadNumber<std::int32_t>(process, "oom_score_adj", 10, 0));
  core.set_oom_score_adj(score);
  ASSIGN_OR_RETURN(const auto login, ReadNumber(process, "loginuid", 10, kNoLoginUid));
  core.set_loginuid(login);
  ASSIGN_OR_RETURN(const std::string limits_text, ReadFileAt(process.proc.get(), "limits"));
  ASSIGN_OR_RETURN(const auto limits, ParseLimits(limits_text));
  for (const ResourceLimit& limit : limits) {
    image::RlimitEntry& entry = *core.mutable_rlimits()->add_rlimits();
    entry.set_cur(limit.soft);
    entry.set_max(limit.hard);
  }
  RETURN_IF_ERROR(ReadSettings(process, core));
  return ReadAuxiliaryVector(process, mm);
}

namespace {

// A pending SIGSTOP is with RemoteSyscalls as long as calls run in the thread, for it cannot be blocked.
void KeepStop(const image::SignalQueueEntry& before, image::SignalQueueEntry& now) {
  const auto is_stop = [](const image::SiginfoEntry& entry) {
    int signal = 0;
    std::memcpy(&signal, entry.siginfo().data(), sizeof(signal));
    return signal == SIGSTOP;
  };
  if (std::ranges::any_of(now.signals(), is_stop)) return;
  for (const image::SiginfoEntry& entry : before.signals()) {
    if (is_stop(entry)) *now.add_signals() = entry;
  }
}

}  // namespace

Result<bool> ReadSignalsAgain(DumpedProcess& process, bool of_threads) {
  bool changed = false;
  const auto read = [&changed](pid_t tid, std::uint32_t flags,
                               image::SignalQueueEntry& queue) -> Status {
    image::SignalQueueEntry now;
    RETURN_IF_ERROR(ReadPendingSignals(tid, flags, now));
    KeepStop(queue, now);
    changed = changed || now.SerializeAsString() != queue.SerializeAsString();
    queue = std::move(now);
    return OkStatus();
  };
  for (DumpedThread& thread : process.threads) {
    if (!of_threads) break;
    RETURN_IF_ERROR(
        read(thread.frozen->tid(), 0, *thread.core.mutable_thread_core()->mutable_signals_p()));
  }
  DumpedThread& leader = process.threads.front();
  RETURN_IF_ERROR(
      read(leader.frozen->tid(), kPeekShared, *leader.core.mutable_tc()->mutable_signals_s()));
  return changed;
}

}  // namespace stasis::engine
