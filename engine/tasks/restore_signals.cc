// Signal actions, pending signals and timers.
//
// Source  sigaction(2), rt_sigqueueinfo(2), setitimer(2), timer_create(2), PR_TIMER_CREATE_RESTORE_IDS
//         (Linux 6.16); tested on 6.1 and 6.18
// Rule    A process may queue any siginfo to itself, but from outside the kernel refuses si_code >= 0 and
//         SI_TKILL: the calls run in the process. kernel/signal.c do_rt_sigqueueinfo()
// Rule    Setting an action to "ignored" throws pending signals of that number away, even blocked ones
//         (POSIX.1-2017 2.4.3): so SIGCHLDs that our own work caused are gone before the saved ones come.
// Rule    SIGCONT takes back a pending SIGSTOP: a stopped process cannot tell whether it has one.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/tasks/restore_attributes.h"

namespace stasis::engine {
namespace {

constexpr int kTimerCreateRestoreIds = 77;  // PR_TIMER_CREATE_RESTORE_IDS, newer than our headers
constexpr std::size_t kSiginfoBytes = 128;
constexpr int kSignals = 64;
constexpr int kOldKernelTimerTries = 10'000;

// struct kernel_sigaction of x86_64 and aarch64.
struct KernelSigaction {
  std::uint64_t handler = 0, flags = 0, restorer = 0, mask = 0;
};

// struct sigevent as the kernel has it, 64 bytes.
struct KernelSigevent {
  std::uint64_t value = 0;
  std::int32_t signal = 0, notify = 0, thread_id = 0;
  std::int32_t padding[11] = {};
};
static_assert(sizeof(KernelSigevent) == 64);

Status SetAction(RemoteSyscalls& remote, int signal, const KernelSigaction& action) {
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(action));
  return remote
      .Call("rt_sigaction " + std::to_string(signal), SYS_rt_sigaction, signal, at, 0,
            sizeof(std::uint64_t))
      .status();
}

Status RestoreActions(RestoredProcess& process) {
  RemoteSyscalls& remote = *process.remote;
  // execve(2) left what the placeholder ignored ignored; everything else is the default.
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(process.proc.get(), "status"));
  ASSIGN_OR_RETURN(const TaskStatus status, ParseTaskStatus(text));
  RETURN_IF_ERROR(SetAction(remote, SIGCHLD, {}));
  const auto& actions = process.image->leader().core.tc().sigactions();
  int index = 0;
  for (int signal = 1; signal <= kSignals && index < actions.size(); ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    const image::SaEntry& entry = actions[index++];
    const KernelSigaction action = {entry.sigaction(), entry.flags(), entry.restorer(),
                                    entry.mask()};
    const bool is_default = action.handler == 0 && action.flags == 0 && action.mask == 0;
    if (is_default && (status.ignored >> (signal - 1) & 1) == 0) continue;
    RETURN_IF_ERROR(SetAction(remote, signal, action));
  }
  return OkStatus();
}

// Queues the saved signals to the process (tid 0) or to one thread of it.
Status QueueSignals(RemoteSyscalls& remote, const image::SignalQueueEntry& queue, pid_t pid,
                    pid_t tid) {
  for (const image::SiginfoEntry& entry : queue.signals()) {
    if (entry.siginfo().size() != kSiginfoBytes) {
      return InvalidArgument("core image: a siginfo of " + std::to_string(entry.siginfo().size()) +
                             " bytes");
    }
    int signal = 0;
    std::memcpy(&signal, entry.siginfo().data(), sizeof(signal));
    if (signal == SIGSTOP) continue;  // cannot be blocked while our calls run: see IsToStop
    remote.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t info,
                     remote.Put(std::as_bytes(std::span(entry.siginfo()))));
    RETURN_IF_ERROR(
        tid == 0 ? remote.Call("rt_sigqueueinfo", SYS_rt_sigqueueinfo, pid, signal, info).status()
                 : remote.Call("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, pid, tid, signal, info)
                       .status());
  }
  return OkStatus();
}

// Each to its own thread; few threads have any.
Status QueueThreadSignals(RestoredProcess& process) {
  const bool any = std::ranges::any_of(process.image->threads, [](const ThreadImage& thread) {
    return thread.core.thread_core().signals_p().signals_size() != 0;
  });
  if (!any) return OkStatus();
  return ForEachThread(process, [&](const ThreadImage& thread, RemoteSyscalls& remote) {
    return QueueSignals(remote, thread.core.thread_core().signals_p(), process.image->pid(),
                        thread.tid);
  });
}

// A periodic ITIMER_REAL whose signal is still pending is armed again when that is taken, and shows no
// time left until then (itimer_get_remtime). A signal that we queue does not do that. setitimer(2)
// with no time clears the interval (do_setitimer), so nothing else looks like this. The signal itself
// may not be in the images: CRIU reads the queue before the timers.
bool IsBetweenTicks(const image::ItimerEntry& real) {
  return real.vsec() == 0 && real.vusec() == 0 && (real.isec() != 0 || real.iusec() != 0);
}

Status RestoreInterval(RemoteSyscalls& remote, int which, const image::ItimerEntry& entry) {
  itimerval value = {};
  value.it_interval = {static_cast<time_t>(entry.isec()), static_cast<suseconds_t>(entry.iusec())};
  value.it_value = {static_cast<time_t>(entry.vsec()), static_cast<suseconds_t>(entry.vusec())};
  if (entry.isec() == 0 && entry.iusec() == 0 && entry.vsec() == 0 && entry.vusec() == 0) {
    return OkStatus();
  }
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(value));
  return remote.Call("setitimer", SYS_setitimer, which, at, 0).status();
}

// The timer with exactly the wanted id. `by_id`: the kernel takes the id from us; before 6.16 it counts
// up, and we make and drop timers until it is reached.
Status CreateTimer(RemoteSyscalls& remote, const image::PosixTimerEntry& entry, bool by_id) {
  KernelSigevent event;
  event.value = entry.sival_ptr();
  event.signal = static_cast<std::int32_t>(entry.si_signo());
  event.notify = static_cast<std::int32_t>(entry.it_sigev_notify());
  event.thread_id = entry.notify_thread_id();
  for (int attempt = 0; attempt < (by_id ? 1 : kOldKernelTimerTries); ++attempt) {
    remote.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(event));
    ASSIGN_OR_RETURN(const std::uint64_t id, remote.PutValue(entry.it_id()));
    RETURN_IF_ERROR(
        remote.Call("timer_create", SYS_timer_create, entry.clock_id(), at, id).status());
    ASSIGN_OR_RETURN(const std::uint32_t made, remote.ReadValue<std::uint32_t>(id));
    if (made == entry.it_id()) return OkStatus();
    RETURN_IF_ERROR(remote.Call("timer_delete", SYS_timer_delete, made).status());
  }
  return FailedPrecondition(
      "POSIX timer id " + std::to_string(entry.it_id()) +
      " cannot be had on this kernel (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.16)");
}

Status RestoreTimers(RestoredProcess& process) {
  RemoteSyscalls& remote = *process.remote;
  const image::TaskTimersEntry& timers = process.image->leader().core.tc().timers();
  image::ItimerEntry real = timers.real();
  if (IsBetweenTicks(real)) {
    real.set_vsec(real.isec());
    real.set_vusec(real.iusec());
  }
  RETURN_IF_ERROR(RestoreInterval(remote, ITIMER_REAL, real));
  RETURN_IF_ERROR(RestoreInterval(remote, ITIMER_VIRTUAL, timers.virt()));
  RETURN_IF_ERROR(RestoreInterval(remote, ITIMER_PROF, timers.prof()));
  if (timers.posix_size() == 0) return OkStatus();
  const bool by_id =
      remote.Call("PR_TIMER_CREATE_RESTORE_IDS", SYS_prctl, kTimerCreateRestoreIds, 1, 0, 0, 0)
          .ok();
  // Numbers only count up, and a dump may have them in any order.
  std::vector<image::PosixTimerEntry> rising(timers.posix().begin(), timers.posix().end());
  std::ranges::sort(rising, {}, &image::PosixTimerEntry::it_id);
  for (const image::PosixTimerEntry& entry : rising) {
    RETURN_IF_ERROR(CreateTimer(remote, entry, by_id));
    itimerspec value = {};
    value.it_interval = {static_cast<time_t>(entry.isec()), static_cast<long>(entry.insec())};
    value.it_value = {static_cast<time_t>(entry.vsec()), static_cast<long>(entry.vnsec())};
    ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(value));
    RETURN_IF_ERROR(
        remote.Call("timer_settime", SYS_timer_settime, entry.it_id(), 0, at, 0).status());
  }
  if (!by_id) return OkStatus();
  return remote.Call("PR_TIMER_CREATE_RESTORE_IDS", SYS_prctl, kTimerCreateRestoreIds, 0, 0, 0, 0)
      .status();
}

}  // namespace

bool IsToStop(const ProcessImage& process) {
  constexpr std::uint32_t kStopped = 3;
  const auto has_stop = [](const image::SignalQueueEntry& queue) {
    return std::ranges::any_of(queue.signals(), [](const image::SiginfoEntry& entry) {
      int signal = 0;
      if (entry.siginfo().size() == kSiginfoBytes) {
        std::memcpy(&signal, entry.siginfo().data(), sizeof(signal));
      }
      return signal == SIGSTOP;
    });
  };
  const image::TaskCoreEntry& task = process.leader().core.tc();
  return task.task_state() == kStopped || has_stop(task.signals_s()) ||
         std::ranges::any_of(process.threads, [&](const ThreadImage& thread) {
           return has_stop(thread.core.thread_core().signals_p());
         });
}

Status RestoreSignals(RestoredProcess& process) {
  const pid_t pid = process.image->pid();
  RETURN_IF_ERROR(RestoreActions(process));
  RETURN_IF_ERROR(
      QueueSignals(*process.remote, process.image->leader().core.tc().signals_s(), pid, 0));
  RETURN_IF_ERROR(QueueThreadSignals(process));
  return RestoreTimers(process);
}

}  // namespace stasis::engine
