// Credentials, seccomp filters, and labels (security_label.h).
//
// Source  credentials(7), capabilities(7), seccomp(2), ptrace(2) PTRACE_SECCOMP_GET_FILTER; tested on 6.18
// Rule    Nothing is granted: ids are changed with the capabilities that the live process has,
//         capabilities and the bounding set only shrink, no_new_privs and filters are only added.
// Rule    setresuid(2) from root to another user drops all capabilities unless PR_SET_KEEPCAPS is on,
//         and then still the effective ones; capset(2) puts back those that are to stay.
// Rule    Filters are inherited: the runtime's own, which the placeholder has, come first in the image too
//         and are not installed twice. Where the live container has others, those of a process that could
//         not have installed any itself were its runtime's: the live ones stand for them.
// Rule    SECCOMP_FILTER_FLAG_TSYNC asks that each thread's filters are, as objects, among the caller's: what
//         the threads of a process have in common is installed once, by TSYNC, and not by each of them.
// Rule    Strict mode is the last thing that a thread can ask for, but for a tracer that suspends it.
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <vector>

#include "engine/base/io.h"
#include "engine/proc/task.h"
#include "engine/tasks/restore_attributes.h"
#include "engine/tasks/security_label.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kInstructionBytes = 8;    // struct sock_filter
constexpr std::size_t kMaxInstructions = 4096;  // BPF_MAXINSNS
constexpr int kMaxFilters = 512;
constexpr int kLastCapability = 63;

using Words = google::protobuf::RepeatedField<std::uint32_t>;

std::uint64_t Set(const Words& words) {
  std::uint64_t set = words.size() > 0 ? words[0] : 0;
  if (words.size() > 1) set |= std::uint64_t{words[1]} << 32;
  return set;
}

Result<TaskStatus> LiveStatus(pid_t tid) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(tid) + "/status"));
  return ParseTaskStatus(text);
}

Status NotOurs(const Status& status, const std::string& what) {
  // EACCES: seccomp(2) without CAP_SYS_ADMIN and no_new_privs.
  if (ErrnoOf(status) != EPERM && ErrnoOf(status) != EACCES) return status;
  return FailedPrecondition(what + " is not for this container to take (" + Message(status) +
                            "); give the pod the same user and capabilities as the original had");
}

// True when a task like `live` has what is wanted; of a thread that was just made, nobody set secure bits.
bool Has(const TaskStatus& live, const image::CredsEntry& wanted) {
  const std::array<std::uint32_t, 4> uids = {wanted.uid(), wanted.euid(), wanted.suid(),
                                             wanted.fsuid()};
  const std::array<std::uint32_t, 4> gids = {wanted.gid(), wanted.egid(), wanted.sgid(),
                                             wanted.fsgid()};
  std::vector<std::uint32_t> groups(wanted.groups().begin(), wanted.groups().end());
  std::vector<std::uint32_t> now = live.groups;
  std::ranges::sort(groups);
  std::ranges::sort(now);
  return live.uid == uids && live.gid == gids && groups == now && wanted.secbits() == 0 &&
         (live.cap_bounding & ~Set(wanted.cap_bnd())) == 0 &&
         Set(wanted.cap_prm()) == live.cap_permitted &&
         Set(wanted.cap_eff()) == live.cap_effective &&
         Set(wanted.cap_inh()) == live.cap_inheritable &&
         Set(wanted.cap_amb()) == live.cap_ambient &&
         (wanted.no_new_privs() == 0 || live.no_new_privs);
}

class Credentials {
 public:
  Credentials(const image::CredsEntry& wanted, TaskStatus live, RemoteSyscalls& remote,
              Notes& notes)
      : wanted_(wanted), live_(std::move(live)), remote_(remote), notes_(notes) {}

  Status Restore() {
    RETURN_IF_ERROR(ShrinkBoundingSet());
    RETURN_IF_ERROR(TakeIds());
    if (!HasCapabilities()) RETURN_IF_ERROR(ChangeCapabilities());
    if (wanted_.no_new_privs() != 0 && !live_.no_new_privs) {
      return remote_.Call("PR_SET_NO_NEW_PRIVS", SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
          .status();
    }
    return OkStatus();
  }

 private:
  // Nothing is to change, as in most threads of a container: those of a fresh thread are its creator's.
  bool HasCapabilities() const {
    const std::array<std::uint32_t, 4> uids = {wanted_.uid(), wanted_.euid(), wanted_.suid(),
                                               wanted_.fsuid()};
    return live_.uid == uids && wanted_.secbits() == 0 &&
           Set(wanted_.cap_prm()) == live_.cap_permitted &&
           Set(wanted_.cap_eff()) == live_.cap_effective &&
           Set(wanted_.cap_inh()) == live_.cap_inheritable &&
           Set(wanted_.cap_amb()) == live_.cap_ambient;
  }

  Status ChangeCapabilities() {
    // Secure bits need CAP_SETPCAP, which may be among what goes with the last step.
    RETURN_IF_ERROR(
        SetCapabilities(live_.cap_permitted, live_.cap_permitted, live_.cap_inheritable));
    if (wanted_.secbits() != 0) {
      RETURN_IF_ERROR(NotOurs(
          remote_
              .Call("PR_SET_SECUREBITS", SYS_prctl, PR_SET_SECUREBITS, wanted_.secbits(), 0, 0, 0)
              .status(),
          "secure bits " + std::to_string(wanted_.secbits())));
    }
    return TakeCapabilities();
  }

  Status ShrinkBoundingSet() {
    const std::uint64_t extra = live_.cap_bounding & ~Set(wanted_.cap_bnd());
    for (int capability = 0; capability <= kLastCapability; ++capability) {
      if ((extra >> capability & 1) == 0) continue;
      const Status status =
          remote_.Call("PR_CAPBSET_DROP", SYS_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0).status();
      if (ErrnoOf(status) == EPERM) {
        notes_.push_back("the capability bounding set stays as this pod has it, wider than it was");
        return OkStatus();
      }
      RETURN_IF_ERROR(status);
    }
    return OkStatus();
  }

  Status TakeIds() {
    std::vector<std::uint32_t> groups(wanted_.groups().begin(), wanted_.groups().end());
    std::vector<std::uint32_t> sorted = groups, now = live_.groups;
    std::sort(sorted.begin(), sorted.end());
    std::sort(now.begin(), now.end());
    if (sorted != now) {
      ASSIGN_OR_RETURN(const std::uint64_t at, remote_.Put(std::as_bytes(std::span(groups))));
      RETURN_IF_ERROR(NotOurs(remote_.Call("setgroups", SYS_setgroups, groups.size(), at).status(),
                              "the list of supplementary groups"));
    }
    const bool same_gid = live_.gid[0] == wanted_.gid() && live_.gid[1] == wanted_.egid() &&
                          live_.gid[2] == wanted_.sgid();
    if (!same_gid) {
      RETURN_IF_ERROR(NotOurs(
          remote_.Call("setresgid", SYS_setresgid, wanted_.gid(), wanted_.egid(), wanted_.sgid())
              .status(),
          "group " + std::to_string(wanted_.egid())));
    }
    if (wanted_.fsgid() != wanted_.egid()) {
      RETURN_IF_ERROR(remote_.Call("setfsgid", SYS_setfsgid, wanted_.fsgid()).status());
    }
    const bool same_uid = live_.uid[0] == wanted_.uid() && live_.uid[1] == wanted_.euid() &&
                          live_.uid[2] == wanted_.suid();
    if (!same_uid) {
      RETURN_IF_ERROR(
          remote_.Call("PR_SET_KEEPCAPS", SYS_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0).status());
      RETURN_IF_ERROR(NotOurs(
          remote_.Call("setresuid", SYS_setresuid, wanted_.uid(), wanted_.euid(), wanted_.suid())
              .status(),
          "user " + std::to_string(wanted_.euid())));
      RETURN_IF_ERROR(
          remote_.Call("PR_SET_KEEPCAPS", SYS_prctl, PR_SET_KEEPCAPS, 0, 0, 0, 0).status());
    }
    if (wanted_.fsuid() != wanted_.euid()) {
      RETURN_IF_ERROR(remote_.Call("setfsuid", SYS_setfsuid, wanted_.fsuid()).status());
    }
    return OkStatus();
  }

  Status SetCapabilities(std::uint64_t effective, std::uint64_t permitted,
                         std::uint64_t inheritable) {
    const __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    const auto low = [](std::uint64_t set) { return static_cast<__u32>(set); };
    const auto high = [](std::uint64_t set) { return static_cast<__u32>(set >> 32); };
    const __user_cap_data_struct data[2] = {{low(effective), low(permitted), low(inheritable)},
                                            {high(effective), high(permitted), high(inheritable)}};
    ASSIGN_OR_RETURN(const std::uint64_t header_at, remote_.PutValue(header));
    ASSIGN_OR_RETURN(const std::uint64_t data_at, remote_.PutValue(data));
    return remote_.Call("capset", SYS_capset, header_at, data_at).status();
  }

  Status TakeCapabilities() {
    const std::uint64_t permitted = Set(wanted_.cap_prm()) & live_.cap_permitted;
    const std::uint64_t effective = Set(wanted_.cap_eff()) & permitted;
    const std::uint64_t inheritable =
        Set(wanted_.cap_inh()) & (live_.cap_inheritable | live_.cap_permitted);
    if (permitted != Set(wanted_.cap_prm())) {
      notes_.push_back("capabilities that this pod does not grant are not restored");
    }
    RETURN_IF_ERROR(SetCapabilities(effective, permitted, inheritable));
    const std::uint64_t ambient = Set(wanted_.cap_amb()) & permitted & inheritable;
    for (int capability = 0; capability <= kLastCapability; ++capability) {
      if ((ambient >> capability & 1) == 0) continue;
      RETURN_IF_ERROR(remote_
                          .Call("PR_CAP_AMBIENT_RAISE", SYS_prctl, PR_CAP_AMBIENT,
                                PR_CAP_AMBIENT_RAISE, capability, 0, 0)
                          .status());
    }
    return OkStatus();
  }

  const image::CredsEntry& wanted_;
  const TaskStatus live_;
  RemoteSyscalls& remote_;
  Notes& notes_;
};

// The thread's filters in the image, oldest first. A filter's `prev` is the next newer one.
Result<std::vector<const image::SeccompFilter*>> FiltersOf(const ThreadImage& thread,
                                                           const CheckpointImages& images) {
  std::vector<const image::SeccompFilter*> filters;
  const image::ThreadCoreEntry& core = thread.core.thread_core();
  if (core.seccomp_mode() != image::SECCOMP_FILTER) return filters;
  std::uint32_t index = core.seccomp_filter();
  while (true) {
    if (index >= static_cast<std::uint32_t>(images.seccomp.seccomp_filters_size()) ||
        filters.size() >= kMaxFilters) {
      return InvalidArgument("seccomp.img: the chain of filters is broken");
    }
    const image::SeccompFilter& filter = images.seccomp.seccomp_filters(static_cast<int>(index));
    if (filter.filter().size() % kInstructionBytes != 0 || filter.filter().empty() ||
        filter.filter().size() > kMaxInstructions * kInstructionBytes) {
      return InvalidArgument("seccomp.img: a filter of " + std::to_string(filter.filter().size()) +
                             " bytes");
    }
    filters.push_back(&filter);
    if (!filter.has_prev()) return filters;
    index = filter.prev();
  }
}

// True when no filter can be the process's own: it has neither no_new_privs nor, in reach, CAP_SYS_ADMIN.
bool CouldInstallNone(const image::CredsEntry& creds) {
  return creds.no_new_privs() == 0 && (Set(creds.cap_bnd()) >> CAP_SYS_ADMIN & 1) == 0;
}

using Filters = std::vector<const image::SeccompFilter*>;

// How many filters are there already: those that the runtime installed before the program began.
std::size_t Inherited(const Filters& wanted, const std::vector<std::string>& live) {
  if (live.size() > wanted.size()) return 0;
  for (std::size_t i = 0; i < live.size(); ++i) {
    if (wanted[i]->filter() != live[i]) return 0;
  }
  return live.size();
}

// How many of the leader's filters all threads of `process` have, oldest first. None where the threads
// differ in no_new_privs, which TSYNC would give to all.
Result<std::size_t> CommonFilters(const RestoredProcess& process, const CheckpointImages& images) {
  const ThreadImage& leader = process.image->leader();
  ASSIGN_OR_RETURN(const Filters first, FiltersOf(leader, images));
  std::size_t common = first.size();
  for (const ThreadImage& thread : process.image->threads) {
    ASSIGN_OR_RETURN(const Filters filters, FiltersOf(thread, images));
    const auto differs = std::ranges::mismatch(first, filters);
    common = std::min(common, static_cast<std::size_t>(differs.in1 - first.begin()));
    if (thread.core.thread_core().creds().no_new_privs() !=
        leader.core.thread_core().creds().no_new_privs()) {
      return 0;
    }
  }
  return process.image->threads.size() > 1 ? common : 0;
}

Status InstallFilter(const image::SeccompFilter& filter, bool to_all, RemoteSyscalls& remote) {
  remote.ResetArguments();
  const std::string& code = filter.filter();
  ASSIGN_OR_RETURN(const std::uint64_t code_at, remote.Put(std::as_bytes(std::span(code))));
  struct {
    std::uint16_t length;
    std::uint64_t code;
  } const program = {static_cast<std::uint16_t>(code.size() / kInstructionBytes), code_at};
  ASSIGN_OR_RETURN(const std::uint64_t program_at, remote.PutValue(program));
  constexpr std::uint32_t kKept = SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
  const std::uint32_t sync = to_all ? SECCOMP_FILTER_FLAG_TSYNC : 0;
  ASSIGN_OR_RETURN(const std::uint64_t refused,
                   remote.Call("seccomp", SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                               (filter.flags() & kKept) | sync, program_at));
  if (refused == 0) return OkStatus();
  return Internal("tid " + std::to_string(refused) + " does not take the filters of its process");
}

// The filters of a process under restore.
class Filtering {
 public:
  Filtering(const CheckpointImages& images, const std::vector<std::string>& live,
            std::size_t common, Notes& notes)
      : images_(images), live_(live), common_(common), notes_(notes) {}

  // True when a thread besides the leader has all that it is to have from it.
  Result<bool> HasAll(const ThreadImage& thread) const {
    ASSIGN_OR_RETURN(const Filters wanted, FiltersOf(thread, images_));
    return thread.core.thread_core().seccomp_mode() != image::SECCOMP_STRICT &&
           std::max(Inherited(wanted, live_), std::min(common_, wanted.size())) == wanted.size();
  }

  // The leader comes first, and gives all threads what they have in common.
  Status Install(const ThreadImage& thread, bool is_leader, RemoteSyscalls& remote) {
    ASSIGN_OR_RETURN(const Filters wanted, FiltersOf(thread, images_));
    std::size_t i = Inherited(wanted, live_);
    if (!is_leader) i = std::max(i, std::min(common_, wanted.size()));
    for (; i < wanted.size(); ++i) {
      const Status installed = InstallFilter(*wanted[i], is_leader && i < common_, remote);
      if (ErrnoOf(installed) == EACCES && CouldInstallNone(thread.core.thread_core().creds())) {
        notes_.push_back("the seccomp profile is this pod's, not the one that the original had");
        return OkStatus();
      }
      RETURN_IF_ERROR(NotOurs(installed, "a seccomp filter"));
    }
    if (thread.core.thread_core().seccomp_mode() != image::SECCOMP_STRICT) return OkStatus();
    return NotOurs(
        remote.Call("seccomp strict", SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, 0).status(),
        "strict seccomp mode");
  }

 private:
  const CheckpointImages& images_;
  const std::vector<std::string>& live_;
  const std::size_t common_;
  Notes& notes_;
};

}  // namespace

Result<std::vector<std::string>> ReadSeccompFilters(pid_t tid) {
  std::vector<std::string> filters;
  for (int index = 0; index < kMaxFilters; ++index) {
    const auto request = static_cast<__ptrace_request>(PTRACE_SECCOMP_GET_FILTER);
    const long count = ::ptrace(request, tid, index, nullptr);
    if (count < 0) {
      // ENOENT: no more; EINVAL: none at all (mode is not filter).
      if (errno == ENOENT || errno == EINVAL) return filters;
      return SyscallError(errno, "ptrace SECCOMP_GET_FILTER tid " + std::to_string(tid));
    }
    std::string filter(static_cast<std::size_t>(count) * kInstructionBytes, '\0');
    if (::ptrace(request, tid, index, filter.data()) < 0) {
      return SyscallError(errno, "ptrace SECCOMP_GET_FILTER tid " + std::to_string(tid));
    }
    filters.push_back(std::move(filter));
  }
  return filters;
}

Status RestoreConfinement(RestoredProcess& process, const CheckpointImages& images,
                          const std::vector<std::string>& live_filters, const Labels& labels,
                          Notes& notes) {
  ASSIGN_OR_RETURN(const std::size_t common, CommonFilters(process, images));
  Filtering filtering(images, live_filters, common, notes);
  const auto confine = [&](const ThreadImage& thread, RemoteSyscalls& remote) -> Status {
    const bool is_leader = &thread == &process.image->leader();
    ASSIGN_OR_RETURN(TaskStatus live, LiveStatus(remote.tracee().tid()));
    const image::ThreadCoreEntry& core = thread.core.thread_core();
    // Without no_new_privs only CAP_SYS_ADMIN installs filters, and that may be among what is dropped.
    const bool filters_first = core.creds().no_new_privs() == 0 && !live.no_new_privs;
    if (filters_first) RETURN_IF_ERROR(filtering.Install(thread, is_leader, remote));
    remote.ResetArguments();
    RETURN_IF_ERROR(Credentials(core.creds(), std::move(live), remote, notes).Restore());
    if (!filters_first) RETURN_IF_ERROR(filtering.Install(thread, is_leader, remote));
    if (is_leader || core.pdeath_sig() != 0) {  // a fresh thread has none
      // Here, for a change of ids clears it. 0 too: a placeholder that we started dies with us.
      RETURN_IF_ERROR(
          remote.Call("PR_SET_PDEATHSIG", SYS_prctl, PR_SET_PDEATHSIG, core.pdeath_sig(), 0, 0, 0)
              .status());
    }
    return labels.Give(thread, remote);
  };
  process.remote->ResetArguments();
  std::optional<TaskStatus> born;  // as its threads were, before the leader gave up anything
  if (!process.others.empty()) {
    ASSIGN_OR_RETURN(born, LiveStatus(process.others.front().tracee.tid()));
  }
  RETURN_IF_ERROR(confine(process.image->leader(), *process.remote));
  for (RestoredProcess::Thread& thread : process.others) {
    ASSIGN_OR_RETURN(const bool as_born, filtering.HasAll(*thread.image));
    const image::ThreadCoreEntry& core = thread.image->core.thread_core();
    if (as_born && core.pdeath_sig() == 0 && Has(*born, core.creds()) &&
        !labels.IsToChange(*thread.image)) {
      continue;
    }
    RETURN_IF_ERROR(RunIn(process, thread, confine));
  }
  if (!process.image->mm.has_dumpable()) return OkStatus();
  // 2 (root only) is for the kernel to set, at a change of ids; prctl(2) takes 0 and 1.
  const int dumpable = process.image->mm.dumpable() == 1 ? 1 : 0;
  ASSIGN_OR_RETURN(const std::uint64_t live,
                   process.remote->Call("PR_GET_DUMPABLE", SYS_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0));
  if (static_cast<std::int32_t>(live) == process.image->mm.dumpable()) return OkStatus();
  return process.remote->Call("PR_SET_DUMPABLE", SYS_prctl, PR_SET_DUMPABLE, dumpable, 0, 0, 0)
      .status();
}

}  // namespace stasis::engine
