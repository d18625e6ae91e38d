// Source  prctl(2), getitimer(2), timer_gettime(2), sigaltstack(2), membarrier(2); tested on 6.18
// Rule    Signal actions are asked for only where /proc says that they are not the default.
// Rule    sigaltstack(2) says SS_ONSTACK by the stack pointer; ours is never on the alternate
//         stack.
// Rule    A thread that was left alone in the midst of its calls makes the rest of them: none may be one that
//         its seccomp filters, which its tracer suspends, would end it for.
#include "engine/tasks/dump_inside.h"

#include <absl/cleanup/cleanup.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/tasks/dump_outside.h"
#include "engine/tasks/dump_tree.h"
#include "engine/tasks/settings.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/foothold.h"
#include "engine/tracee/remote_syscalls.h"
#include "engine/tracee/together.h"

namespace stasis::engine {
namespace {

// struct sigaction as the kernel has it on x86_64.
struct KernelSigaction {
  std::uint64_t handler, flags, restorer, mask;
};

constexpr std::uint64_t kHere = CallBatch::kHere;
constexpr std::uint64_t kSignalSetBytes = 8;
constexpr int kGetRegistrations = 1 << 9;  // MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3

std::uint64_t Word(int value) { return static_cast<std::uint64_t>(value); }

void AskSignalActions(CallBatch& batch, const TaskStatus& status, image::TaskCoreEntry& core) {
  core.clear_sigactions();
  // References to what is added later must stay good: all have their places first.
  for (int signal = 1; signal <= 64; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    image::SaEntry& entry = *core.add_sigactions();
    entry.set_sigaction(0);
    entry.set_flags(0);
    entry.set_restorer(0);
    entry.set_mask(0);
    const std::uint64_t bit = std::uint64_t{1} << (signal - 1);
    if (((status.caught | status.ignored) & bit) == 0) continue;
    batch.AddFilling<KernelSigaction>("rt_sigaction", SYS_rt_sigaction,
                                      {Word(signal), 0, kHere, kSignalSetBytes},
                                      [&entry](const KernelSigaction& action) {
                                        entry.set_sigaction(action.handler);
                                        entry.set_flags(action.flags);
                                        entry.set_restorer(action.restorer);
                                        entry.set_mask(action.mask);
                                      });
  }
}

void AskIntervalTimer(CallBatch& batch, int which, image::ItimerEntry& entry) {
  batch.AddFilling<itimerval>(
      "getitimer", SYS_getitimer, {Word(which), kHere}, [&entry](const itimerval& timer) {
        entry.set_isec(static_cast<std::uint64_t>(timer.it_interval.tv_sec));
        entry.set_iusec(static_cast<std::uint64_t>(timer.it_interval.tv_usec));
        entry.set_vsec(static_cast<std::uint64_t>(timer.it_value.tv_sec));
        entry.set_vusec(static_cast<std::uint64_t>(timer.it_value.tv_usec));
      });
}

void AskPosixTimer(CallBatch& batch, const PosixTimer& timer, const FileDumpContext& pids,
                   image::PosixTimerEntry& entry) {
  entry.set_it_id(static_cast<std::uint32_t>(timer.id));
  entry.set_clock_id(static_cast<std::uint32_t>(timer.clock_id));
  entry.set_si_signo(static_cast<std::uint32_t>(timer.signal));
  entry.set_it_sigev_notify(static_cast<std::uint32_t>(timer.notify));
  entry.set_sival_ptr(timer.sigval);
  if ((timer.notify & SIGEV_THREAD_ID) != 0) {
    entry.set_notify_thread_id(pids.ToNamespacePid(timer.notify_pid));
  }
  batch.AddFilling<itimerspec>(
      "timer_gettime", SYS_timer_gettime, {Word(timer.id), kHere},
      [&entry](const itimerspec& value) {
        entry.set_isec(static_cast<std::uint64_t>(value.it_interval.tv_sec));
        entry.set_insec(static_cast<std::uint64_t>(value.it_interval.tv_nsec));
        entry.set_vsec(static_cast<std::uint64_t>(value.it_value.tv_sec));
        entry.set_vnsec(static_cast<std::uint64_t>(value.it_value.tv_nsec));
      });
  batch.Add(
      "timer_getoverrun", SYS_timer_getoverrun, {Word(timer.id)},
      [&entry](std::int64_t overrun) { entry.set_overrun(static_cast<std::uint32_t>(overrun)); });
}

Status AskTimers(CallBatch& batch, const FrozenProcess& process, const FileDumpContext& pids,
                 image::TaskTimersEntry& timers) {
  timers.Clear();
  AskIntervalTimer(batch, ITIMER_REAL, *timers.mutable_real());
  AskIntervalTimer(batch, ITIMER_VIRTUAL, *timers.mutable_virt());
  AskIntervalTimer(batch, ITIMER_PROF, *timers.mutable_prof());
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "timers"));
  ASSIGN_OR_RETURN(const std::vector<PosixTimer> posix, ParsePosixTimers(text));
  for (const PosixTimer& timer : posix) AskPosixTimer(batch, timer, pids, *timers.add_posix());
  return OkStatus();
}

// Any timer but these sends its signal to the process, setitimer(2) also.
bool SignalsThread(const image::TaskTimersEntry& timers) {
  return std::ranges::any_of(timers.posix(), [](const image::PosixTimerEntry& timer) {
    return (timer.it_sigev_notify() & SIGEV_THREAD_ID) != 0;
  });
}

void AskMemory(CallBatch& batch, image::MmEntry& mm, image::TaskCoreEntry& core) {
  batch.Add("brk", SYS_brk, {0},
            [&mm](std::int64_t brk) { mm.set_mm_brk(static_cast<std::uint64_t>(brk)); });
  batch.Add("prctl GET_DUMPABLE", SYS_prctl, {PR_GET_DUMPABLE},
            [&mm](std::int64_t dumpable) { mm.set_dumpable(static_cast<std::int32_t>(dumpable)); });
  batch.Add("prctl GET_THP_DISABLE", SYS_prctl, {PR_GET_THP_DISABLE}, [&](std::int64_t none) {
    if (none != 0) mm.set_thp_disabled(true);
    if (none > 1) core.set_stasis_no_huge_pages(static_cast<std::uint32_t>(none));
  });
#ifdef SYS_modify_ldt
  // Of any length; a first word says whether there is one.
  batch.AddOptional("modify_ldt", SYS_modify_ldt, {0, kHere, 8}, [](std::int64_t bytes) -> Status {
    if (bytes == 0) return OkStatus();
    return Unimplemented("has a local descriptor table (modify_ldt(2))");
  });
#endif
}

// What a process as a whole has, asked of its leader.
Status AskProcess(CallBatch& batch, DumpedProcess& process, const FileDumpContext& pids) {
  image::TaskCoreEntry& core = *process.threads.front().core.mutable_tc();
  AskMemory(batch, process.mm, core);
  AskSignalActions(batch, process.frozen->status, core);
  batch.AddFilling<int>("prctl GET_CHILD_SUBREAPER", SYS_prctl, {PR_GET_CHILD_SUBREAPER, kHere},
                        [&core](int subreaper) {
                          if (subreaper != 0) core.set_child_subreaper(true);
                        });
  AskSettings(batch, core);
  // An older kernel says EINVAL.
  batch.AddOptional("membarrier", SYS_membarrier, {kGetRegistrations}, [&core](std::int64_t mask) {
    if (mask != 0) core.set_membarrier_registration_mask(static_cast<std::uint32_t>(mask));
    return OkStatus();
  });
  return AskTimers(batch, *process.frozen, pids, *core.mutable_timers());
}

void AskUtsNames(CallBatch& batch, UtsNames& names) {
  batch.AddFilling<utsname>("uname", SYS_uname, {kHere}, [&names](const utsname& answer) {
    names.node = answer.nodename;
    names.domain = answer.domainname;
  });
}

void SetAlternateStack(std::uint64_t stack, std::uint64_t bytes, std::uint32_t flags,
                       image::ThreadCoreEntry& thread) {
  image::ThreadSasEntry& entry = *thread.mutable_sas();
  entry.set_ss_sp(stack);
  entry.set_ss_size(bytes);
  entry.set_ss_flags(flags);
}

void SetParentDeathSignal(std::int32_t signal, image::ThreadCoreEntry& thread) {
  if (signal != 0) thread.set_pdeath_sig(static_cast<std::uint32_t>(signal));
}

void SetTimeStampCounter(std::int32_t counter, image::ThreadCoreEntry& thread) {
  if (counter == PR_TSC_ENABLE) return;
  thread.set_stasis_time_stamp_counter(static_cast<std::uint32_t>(counter));
}

// What a thread alone can tell.
void AskThread(CallBatch& batch, image::CoreEntry& core) {
  image::ThreadCoreEntry& thread = *core.mutable_thread_core();
  batch.AddFilling<stack_t>(
      "sigaltstack", SYS_sigaltstack, {0, kHere}, [&thread](const stack_t& stack) {
        SetAlternateStack(reinterpret_cast<std::uint64_t>(stack.ss_sp), stack.ss_size,
                          static_cast<std::uint32_t>(stack.ss_flags), thread);
      });
  batch.Add("prctl GET_SECUREBITS", SYS_prctl, {PR_GET_SECUREBITS}, [&thread](std::int64_t bits) {
    thread.mutable_creds()->set_secbits(static_cast<std::uint32_t>(bits));
  });
  batch.AddFilling<std::uint64_t>(
      "prctl GET_TID_ADDRESS", SYS_prctl, {PR_GET_TID_ADDRESS, kHere},
      [&core](std::uint64_t address) { arch::SetClearTidAddress(address, core); });
  batch.AddFilling<std::int32_t>(
      "prctl GET_PDEATHSIG", SYS_prctl, {PR_GET_PDEATHSIG, kHere},
      [&thread](std::int32_t signal) { SetParentDeathSignal(signal, thread); });
#ifdef __x86_64__
  batch.AddFilling<std::int32_t>(
      "prctl GET_TSC", SYS_prctl, {PR_GET_TSC, kHere},
      [&thread](std::int32_t counter) { SetTimeStampCounter(counter, thread); });
#endif
}

}  // namespace

void TakeFromKernel(const KernelTask& task, image::CoreEntry& core) {
  image::ThreadCoreEntry& thread = *core.mutable_thread_core();
  SetAlternateStack(task.stack, task.stack_bytes, task.stack_flags, thread);
  thread.mutable_creds()->set_secbits(task.secure_bits);
  arch::SetClearTidAddress(task.clear_tid_address, core);
  SetParentDeathSignal(task.parent_death_signal, thread);
  SetTimeStampCounter(task.time_stamp_counter, thread);
}

namespace {

// Whether the others need not be asked: the kernel's structures, where we look for it, have of the leader what it
// said.
bool OthersAreKnown(const DumpedProcess& process) {
  const DumpedThread& leader = process.threads.front();
  const auto is_known = [](const DumpedThread& thread) { return thread.in_kernel.has_value(); };
  if (!std::ranges::all_of(process.threads, is_known)) return false;
  image::CoreEntry core = leader.core;
  TakeFromKernel(*leader.in_kernel, core);
  // Whole only later.
  return core.SerializePartialAsString() == leader.core.SerializePartialAsString();
}

// With a signal that tells when a thread has made its calls; without one where none may, and they are made one
// by one.
OneRun HowToAsk(const DumpedThread& thread) {
  constexpr int kStrict = 1;  // which would end it for any call of ours
  const TaskStatus& status = thread.frozen->status;
  OneRun how = {.ids = {status.ns_tgid.back(), status.ns_pid.back()}};
  if (thread.frozen->stop_signal != 0 || status.seccomp == kStrict) return how;
  for (const int signal : {SIGWINCH, SIGURG}) {
    const std::uint64_t bit = std::uint64_t{1} << (signal - 1);
    if (((status.caught | status.blocked) & bit) != 0) continue;
    how.signal = signal;
    break;
  }
  if (thread.filters == nullptr) return how;
  const SeccompChain& filters = *thread.filters;
  how.allowed = [&filters](const arch::CallInside& call, std::uint64_t behind) {
    return Allows(filters, call, behind);
  };
  return how;
}

Result<RemoteSyscalls> Begin(DumpedThread& thread, const CallPlace& place) {
  return RemoteSyscalls::Begin(thread.frozen->tracee, place, thread.registers,
                               thread.core.thread_core().blk_sigset());
}

Status AskOthers(DumpedProcess& process, const RemoteArea& area) {
  const std::size_t frame_bytes = arch::SignalFrame(process.threads.front().registers, 0, 0).size();
  const auto ask = [](DumpedThread& thread, CallBatch& batch) {
    AskThread(batch, thread.core);
    return HowToAsk(thread);
  };
  const auto end = [](DumpedThread&, RemoteSyscalls& remote, const Status& made) {
    return made.ok() ? remote.Finish() : made;
  };
  return CallTogether(std::span(process.threads).subspan(1), area, frame_bytes, Begin, ask, end);
}

// The sequence is over before our code runs, in the live thread as in the image.
Status AbortSequences(const DumpedProcess& process) {
  for (const DumpedThread& thread : process.threads) {
    if (!thread.sequence_aborted) continue;
    RETURN_IF_ERROR(arch::WriteGeneral(thread.frozen->tid(), thread.registers.general));
  }
  return OkStatus();
}

// One process that is asked.
class Questions {
 public:
  Questions(DumpedProcess& process, const FileDumpContext& pids) : process_(process), pids_(pids) {}

  // Lets its leader begin to answer. End() is to follow, also after an error.
  Status Begin(UtsNames* uts_names) {
    RETURN_IF_ERROR(AbortSequences(process_));
    DumpedThread& leader = process_.threads.front();
    ASSIGN_OR_RETURN(const CallPlace place, TakePlace(leader.frozen->tracee));
    ASSIGN_OR_RETURN(RemoteSyscalls remote, engine::Begin(leader, place));
    remote_.emplace(std::move(remote));
    RETURN_IF_ERROR(AskProcess(batch_, process_, pids_));
    AskThread(batch_, leader.core);
    if (uts_names != nullptr) AskUtsNames(batch_, *uts_names);
    return batch_.Begin(*remote_, HowToAsk(leader));
  }

  // `begun`: what Begin() said. Leaves nothing of ours in the process.
  Status End(Status begun) {
    Status status = std::move(begun);
    if (status.ok()) status = TakeAnswers();
    if (remote_) status.Update(remote_->Finish());
    if (status.ok() && process_.threads.size() > 1) status = HearOthers();
    if (area_) status.Update(RemoveArea(process_.threads.front().frozen->tracee, *area_));
    if (foothold_) status.Update(foothold_->Leave());
    return status;
  }

 private:
  const Vma* Find(std::string_view path) const {
    const auto found = std::ranges::find_if(
        process_.areas, [path](const Area& area) { return area.vma.path == path; });
    return found == process_.areas.end() ? nullptr : &found->vma;
  }

  Result<Foothold> TakeFoothold(Tracee& leader) const {
    const Vma* const vdso = Find("[vdso]");
    return vdso == nullptr ? Foothold::Take(leader)
                           : Foothold::Take(leader, *vdso, Find("[stack]"));
  }

  Status HearOthers() {
    const std::span<DumpedThread> others = std::span(process_.threads).subspan(1);
    if (OthersAreKnown(process_)) return OkStatus();
    for (DumpedThread& thread : process_.threads) thread.in_kernel.reset();  // not to be believed
    if (!area_) {
      if (foothold_) RETURN_IF_ERROR(std::exchange(foothold_, std::nullopt)->Leave());
      ASSIGN_OR_RETURN(area_, MakeArea(process_.threads.front().frozen->tracee, std::nullopt));
    }
    return AskOthers(process_, *area_);
  }

  // Threads that are asked together need more room than there is in a foothold.
  Result<CallPlace> TakePlace(Tracee& leader) {
    if (process_.threads.size() == 1 || process_.threads.front().in_kernel) {
      ASSIGN_OR_RETURN(Foothold foothold, TakeFoothold(leader));
      if (foothold.place().argument_bytes != 0) {
        foothold_.emplace(std::move(foothold));
        return foothold_->place();
      }
      RETURN_IF_ERROR(foothold.Leave());
    }
    ASSIGN_OR_RETURN(area_, MakeArea(leader, std::nullopt));
    return area_->place();
  }

  // Timers run while the tree is frozen. One that fires after the signals were read would be in the image
  // neither as a timer nor as its signal: both are read until nothing fires in between. A timer whose signal
  // is pending does not fire again, so that this ends.
  Status TakeAnswers() {
    RETURN_IF_ERROR(batch_.End());
    constexpr int kAttempts = 10;  // for a stream of signals from elsewhere
    DumpedThread& leader = process_.threads.front();
    for (int attempt = 1; attempt < kAttempts; ++attempt) {
      image::TaskTimersEntry& entry = *leader.core.mutable_tc()->mutable_timers();
      ASSIGN_OR_RETURN(const bool fired, ReadSignalsAgain(process_, SignalsThread(entry)));
      if (!fired) break;
      CallBatch timers;
      RETURN_IF_ERROR(AskTimers(timers, *process_.frozen, pids_, entry));
      RETURN_IF_ERROR(timers.Begin(*remote_, HowToAsk(leader)));
      RETURN_IF_ERROR(timers.End());
    }
    return OkStatus();
  }

  DumpedProcess& process_;
  const FileDumpContext& pids_;
  std::optional<Foothold> foothold_;
  std::optional<RemoteArea> area_;
  std::optional<RemoteSyscalls> remote_;
  CallBatch batch_;
};

}  // namespace

Status AskInside(std::span<DumpedProcess*> processes, const FileDumpContext& files,
                 UtsNames* uts_names) {
  struct Asked {
    Questions questions;
    DumpedProcess* process;
    Status status = {};
  };
  std::list<Asked> all;
  Status worst;
  for (DumpedProcess* const process : processes) {
    Asked& asked = all.emplace_back(Questions(*process, files), process);
    asked.status = asked.questions.Begin(std::exchange(uts_names, nullptr));
    if (!asked.status.ok()) break;
  }
  for (Asked& asked : all) {
    const Status status =
        Annotate(asked.questions.End(std::move(asked.status)), Name(*asked.process->frozen));
    if (worst.ok()) worst = status;
  }
  return worst;
}

}  // namespace stasis::engine
