// Source  prctl(2), getitimer(2), timer_gettime(2), sigaltstack(2), membarrier(2); tested on 6.18
// Rule    A call costs two stops, some 10 us: signal actions are asked for only where /proc says
//         that they are not the default.
// Rule    sigaltstack(2) says SS_ONSTACK by the stack pointer; ours is never on the alternate
//         stack.
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
#include <array>
#include <cerrno>
#include <cstddef>
#include <functional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/tasks/dump_outside.h"
#include "engine/tasks/settings.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {
namespace {

// struct sigaction as the kernel has it on x86_64.
struct KernelSigaction {
  std::uint64_t handler, flags, restorer, mask;
};

constexpr std::uint64_t kSignalSetBytes = 8;
constexpr int kGetRegistrations = 1 << 9;  // MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3

// Calls that fill one T at an address that we give.
template <typename T, typename Invoke>
Result<T> Ask(RemoteSyscalls& remote, Invoke invoke) {
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote.PutValue(T{}));
  RETURN_IF_ERROR(invoke(address).status());
  return remote.ReadValue<T>(address);
}

Status AskSignalActions(RemoteSyscalls& remote, const TaskStatus& status,
                        image::TaskCoreEntry& core) {
  for (int signal = 1; signal <= 64; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    KernelSigaction action = {};
    const std::uint64_t bit = std::uint64_t{1} << (signal - 1);
    if (((status.caught | status.ignored) & bit) != 0) {
      ASSIGN_OR_RETURN(action, Ask<KernelSigaction>(remote, [&](std::uint64_t at) {
                         return remote.Call("rt_sigaction", SYS_rt_sigaction, signal, 0, at,
                                            kSignalSetBytes);
                       }));
    }
    image::SaEntry& entry = *core.add_sigactions();
    entry.set_sigaction(action.handler);
    entry.set_flags(action.flags);
    entry.set_restorer(action.restorer);
    entry.set_mask(action.mask);
  }
  return OkStatus();
}

Status AskIntervalTimer(RemoteSyscalls& remote, int which, image::ItimerEntry& entry) {
  ASSIGN_OR_RETURN(const auto timer, Ask<itimerval>(remote, [&](std::uint64_t at) {
                     return remote.Call("getitimer", SYS_getitimer, which, at);
                   }));
  entry.set_isec(static_cast<std::uint64_t>(timer.it_interval.tv_sec));
  entry.set_iusec(static_cast<std::uint64_t>(timer.it_interval.tv_usec));
  entry.set_vsec(static_cast<std::uint64_t>(timer.it_value.tv_sec));
  entry.set_vusec(static_cast<std::uint64_t>(timer.it_value.tv_usec));
  return OkStatus();
}

Status AskPosixTimer(RemoteSyscalls& remote, const PosixTimer& timer, const FileDumpContext& pids,
                     image::PosixTimerEntry& entry) {
  ASSIGN_OR_RETURN(const auto value, Ask<itimerspec>(remote, [&](std::uint64_t at) {
                     return remote.Call("timer_gettime", SYS_timer_gettime, timer.id, at);
                   }));
  ASSIGN_OR_RETURN(const std::uint64_t overrun,
                   remote.Call("timer_getoverrun", SYS_timer_getoverrun, timer.id));
  entry.set_it_id(static_cast<std::uint32_t>(timer.id));
  entry.set_clock_id(static_cast<std::uint32_t>(timer.clock_id));
  entry.set_si_signo(static_cast<std::uint32_t>(timer.signal));
  entry.set_it_sigev_notify(static_cast<std::uint32_t>(timer.notify));
  entry.set_sival_ptr(timer.sigval);
  entry.set_overrun(static_cast<std::uint32_t>(overrun));
  entry.set_isec(static_cast<std::uint64_t>(value.it_interval.tv_sec));
  entry.set_insec(static_cast<std::uint64_t>(value.it_interval.tv_nsec));
  entry.set_vsec(static_cast<std::uint64_t>(value.it_value.tv_sec));
  entry.set_vnsec(static_cast<std::uint64_t>(value.it_value.tv_nsec));
  if ((timer.notify & SIGEV_THREAD_ID) != 0) {
    entry.set_notify_thread_id(pids.ToNamespacePid(timer.notify_pid));
  }
  return OkStatus();
}

Status AskTimers(RemoteSyscalls& remote, const FrozenProcess& process, const FileDumpContext& pids,
                 image::TaskTimersEntry& timers) {
  RETURN_IF_ERROR(AskIntervalTimer(remote, ITIMER_REAL, *timers.mutable_real()));
  RETURN_IF_ERROR(AskIntervalTimer(remote, ITIMER_VIRTUAL, *timers.mutable_virt()));
  RETURN_IF_ERROR(AskIntervalTimer(remote, ITIMER_PROF, *timers.mutable_prof()));
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "timers"));
  ASSIGN_OR_RETURN(const std::vector<PosixTimer> posix, ParsePosixTimers(text));
  for (const PosixTimer& timer : posix) {
    RETURN_IF_ERROR(AskPosixTimer(remote, timer, pids, *timers.add_posix()));
  }
  return OkStatus();
}

// Timers run while the tree is frozen. One that fires after the signals were read would be in the image
// neither as a timer nor as its signal: both are read until nothing fires in between. A timer whose signal
// is pending does not fire again, so that this ends.
Status AskTimersAndSignals(RemoteSyscalls& remote, DumpedProcess& process,
                           const FileDumpContext& pids) {
  constexpr int kAttempts = 10;  // for a stream of signals from elsewhere
  image::TaskTimersEntry& timers = *process.threads.front().core.mutable_tc()->mutable_timers();
  RETURN_IF_ERROR(ReadSignalsAgain(process).status());
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    timers.Clear();
    RETURN_IF_ERROR(AskTimers(remote, *process.frozen, pids, timers));
    ASSIGN_OR_RETURN(const bool fired, ReadSignalsAgain(process));
    if (!fired) break;
  }
  return OkStatus();
}

Status AskMemory(RemoteSyscalls& remote, image::MmEntry& mm, image::TaskCoreEntry& core) {
  ASSIGN_OR_RETURN(const std::uint64_t brk, remote.Call("brk", SYS_brk, 0));
  mm.set_mm_brk(brk);
  ASSIGN_OR_RETURN(const std::uint64_t dumpable,
                   remote.Call("prctl GET_DUMPABLE", SYS_prctl, PR_GET_DUMPABLE));
  mm.set_dumpable(static_cast<std::int32_t>(dumpable));
  ASSIGN_OR_RETURN(const std::uint64_t no_huge_pages,
                   remote.Call("prctl GET_THP_DISABLE", SYS_prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0));
  if (no_huge_pages != 0) mm.set_thp_disabled(true);
  if (no_huge_pages > 1) core.set_stasis_no_huge_pages(static_cast<std::uint32_t>(no_huge_pages));
#ifdef SYS_modify_ldt
  ASSIGN_OR_RETURN(const std::uint64_t address, remote.Reserve(8));
  const Result<std::uint64_t> ldt = remote.Call("modify_ldt", SYS_modify_ldt, 0, address, 8);
  if (ldt.ok() && *ldt != 0) return Unimplemented("has a local descriptor table (modify_ldt(2))");
#endif
  return OkStatus();
}

Status AskProcess(RemoteSyscalls& remote, DumpedProcess& process, const FileDumpContext& pids) {
  image::TaskCoreEntry& core = *process.threads.front().core.mutable_tc();
  RETURN_IF_ERROR(AskMemory(remote, process.mm, core));
  RETURN_IF_ERROR(AskSignalActions(remote, process.frozen->status, core));
  RETURN_IF_ERROR(AskTimersAndSignals(remote, process, pids));
  ASSIGN_OR_RETURN(const int subreaper, Ask<int>(remote, [&](std::uint64_t at) {
                     return remote.Call("prctl GET_CHILD_SUBREAPER", SYS_prctl,
                                        PR_GET_CHILD_SUBREAPER, at);
                   }));
  if (subreaper != 0) core.set_child_subreaper(true);
  RETURN_IF_ERROR(AskSettings(remote, core));
  const Result<std::uint64_t> barriers =
      remote.Call("membarrier", SYS_membarrier, kGetRegistrations, 0, 0);
  if (barriers.ok() && *barriers != 0) {  // an older kernel says EINVAL
    core.set_membarrier_registration_mask(static_cast<std::uint32_t>(*barriers));
  }
  return OkStatus();
}

// Threads that are asked together, each with its calls.
struct Asked {
  DumpedThread* thread = nullptr;
  RemoteSyscalls remote;
  std::uint64_t answers = 0;  // address of what the calls fill
  Status status = {};
};

// What a thread alone can tell, in the order of the calls; each fills a place of its own, so that all are
// cleared at once and read at once.
struct Answers {
  stack_t stack;
  std::uint64_t tid_address;
  std::int32_t death_signal, counter;
};
using Arguments = std::array<std::uint64_t, 6>;

// A call in all of `threads` at once: each needs a processor for a moment only, and on a busy machine waits
// long for one. What has begun is taken to its end, whatever becomes of the others.
Status AskTogether(std::span<Asked> threads, std::string_view what, long number,
                   const std::function<Arguments(std::uint64_t answers)>& arguments,
                   const std::function<void(Asked&, std::uint64_t result)>& take = nullptr) {
  for (Asked& asked : threads) {
    asked.status = asked.remote.Start(number, arguments(asked.answers));
  }
  for (Asked& asked : threads) {
    if (asked.status.ok()) asked.status = asked.remote.Enter();
  }
  Status worst;
  for (Asked& asked : threads) {
    if (asked.status.ok()) {
      const Result<std::uint64_t> result = asked.remote.End(what);
      asked.status = result.status();
      if (result.ok() && take) take(asked, *result);
    }
    if (worst.ok()) worst = asked.status;
  }
  return worst;
}

Status CallInThreads(std::span<Asked> threads) {
  const auto prctl = [](std::uint64_t option, std::size_t offset) {
    return [option, offset](std::uint64_t answers) { return Arguments{option, answers + offset}; };
  };
  RETURN_IF_ERROR(AskTogether(threads, "sigaltstack", SYS_sigaltstack, [](std::uint64_t answers) {
    return Arguments{0, answers + offsetof(Answers, stack)};
  }));
  RETURN_IF_ERROR(AskTogether(threads, "prctl GET_TID_ADDRESS", SYS_prctl,
                              prctl(PR_GET_TID_ADDRESS, offsetof(Answers, tid_address))));
  RETURN_IF_ERROR(AskTogether(threads, "prctl GET_PDEATHSIG", SYS_prctl,
                              prctl(PR_GET_PDEATHSIG, offsetof(Answers, death_signal))));
  RETURN_IF_ERROR(
      AskTogether(threads, "prctl GET_SECUREBITS", SYS_prctl, prctl(PR_GET_SECUREBITS, 0),
                  [](Asked& asked, std::uint64_t bits) {
                    asked.thread->core.mutable_thread_core()->mutable_creds()->set_secbits(
                        static_cast<std::uint32_t>(bits));
                  }));
#ifdef __x86_64__
  RETURN_IF_ERROR(AskTogether(threads, "prctl GET_TSC", SYS_prctl,
                              prctl(PR_GET_TSC, offsetof(Answers, counter))));
#endif
  return OkStatus();
}

void ToImage(const Answers& answers, image::CoreEntry& core) {
  image::ThreadCoreEntry& thread = *core.mutable_thread_core();
  image::ThreadSasEntry& stack = *thread.mutable_sas();
  stack.set_ss_sp(reinterpret_cast<std::uint64_t>(answers.stack.ss_sp));
  stack.set_ss_size(answers.stack.ss_size);
  stack.set_ss_flags(static_cast<std::uint32_t>(answers.stack.ss_flags));
  arch::SetClearTidAddress(answers.tid_address, core);
  if (answers.death_signal != 0) {
    thread.set_pdeath_sig(static_cast<std::uint32_t>(answers.death_signal));
  }
#ifdef __x86_64__
  if (answers.counter != PR_TSC_ENABLE) {
    thread.set_stasis_time_stamp_counter(static_cast<std::uint32_t>(answers.counter));
  }
#endif
}

Status AskAboutThreads(std::span<Asked> threads) {
  for (Asked& asked : threads) {
    asked.remote.ResetArguments();
    ASSIGN_OR_RETURN(asked.answers, asked.remote.PutValue(Answers{}));
  }
  RETURN_IF_ERROR(CallInThreads(threads));
  for (Asked& asked : threads) {
    ASSIGN_OR_RETURN(const auto answers, asked.remote.ReadValue<Answers>(asked.answers));
    ToImage(answers, asked.thread->core);
  }
  return OkStatus();
}

Status AskUtsNames(RemoteSyscalls& remote, UtsNames& names) {
  ASSIGN_OR_RETURN(const auto answer, Ask<utsname>(remote, [&](std::uint64_t at) {
                     return remote.Call("uname", SYS_uname, at);
                   }));
  names.node = answer.nodename;
  names.domain = answer.domainname;
  return OkStatus();
}

Status AskLeader(DumpedProcess& process, const RemoteArea& area, const FileDumpContext& pids,
                 UtsNames* uts_names) {
  DumpedThread& leader = process.threads.front();
  ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(leader.frozen->tracee, area));
  RETURN_IF_ERROR(AskProcess(remote, process, pids));
  if (uts_names != nullptr) RETURN_IF_ERROR(AskUtsNames(remote, *uts_names));
  Asked asked = {.thread = &leader, .remote = std::move(remote)};
  RETURN_IF_ERROR(AskAboutThreads(std::span(&asked, 1)));
  return asked.remote.Finish();
}

// The threads besides the leader, as many at once as there is room for their frames.
Status AskOthers(DumpedProcess& process, const RemoteArea& area) {
  const std::size_t frame_bytes = arch::SignalFrame(process.threads.front().registers, 0, 0).size();
  const bool has_room = frame_bytes <= RemoteArea::kSlotFrameBytes;
  std::span<DumpedThread> rest = std::span(process.threads).subspan(1);
  while (!rest.empty()) {
    const std::size_t count = has_room ? std::min<std::size_t>(rest.size(), RemoteArea::kSlots) : 1;
    std::vector<Asked> asked;
    for (unsigned i = 0; i < count; ++i) {
      RemoteArea part = area;
      if (has_room) part.slot = i;
      ASSIGN_OR_RETURN(RemoteSyscalls remote, RemoteSyscalls::Begin(rest[i].frozen->tracee, part));
      asked.push_back({.thread = &rest[i], .remote = std::move(remote)});
    }
    RETURN_IF_ERROR(AskAboutThreads(asked));
    for (Asked& one : asked) RETURN_IF_ERROR(one.remote.Finish());
    rest = rest.subspan(count);
  }
  return OkStatus();
}

// The sequence is over before our code runs, in the live thread as in the image.
Status AbortSequences(const DumpedProcess& process) {
  for (const DumpedThread& thread : process.threads) {
    if (!thread.sequence_aborted) continue;
    RETURN_IF_ERROR(arch::WriteGeneral(thread.frozen->tid(), thread.registers.general));
  }
  return OkStatus();
}

}  // namespace

Status AskInside(DumpedProcess& process, const FileDumpContext& files, UtsNames* uts_names) {
  RETURN_IF_ERROR(AbortSequences(process));
  Tracee& leader = process.threads.front().frozen->tracee;
  ASSIGN_OR_RETURN(const RemoteArea area, MakeArea(leader, std::nullopt));
  Status status = AskLeader(process, area, files, uts_names);
  if (status.ok()) status = AskOthers(process, area);
  const Status removed = RemoveArea(leader, area);
  return status.ok() ? removed : status;
}

}  // namespace stasis::engine
