// Source  include/linux/sched.h, sched/signal.h, pid.h, cred.h, fs/proc/internal.h, kernel/signal.c (do_sigaltstack),
//         kernel/sys.c (prctl), arch/x86/kernel/process.c; tested on 6.18
// Rule    A directory of /proc/PID keeps its struct pid; the first of its tasks[PIDTYPE_TGID] is the leader, and
//         signal->thread_head has all threads of the process.
// Rule    An id in a pid namespace is numbers[level].nr, by the level of that namespace; the first has level 0.
// Rule    files_struct, fs_struct, nsproxy and css_set are shared, not copied, as long as two tasks are to have the
//         same: equal addresses mean the same thing, others do not mean another.
// Rule    sigaltstack(2) says SS_DISABLE of a stack without a size, and SS_AUTODISARM as it was set.
// Rule    prctl(PR_GET_TSC) reads a flag of the thread, whose number no table tells: it is the one that PR_SET_TSC
//         changes. A thread whose counter is off must not look at a clock; no signal handler may run in it.
#include "engine/tasks/kernel_tasks.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "engine/base/io.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kAutoDisarm = std::uint32_t{1} << 31;  // SS_AUTODISARM
constexpr std::size_t kMostThreads = std::size_t{1} << 22;     // PID_MAX_LIMIT
constexpr std::size_t kMostTaskBytes = 16384;                  // of one task_struct

constexpr std::array<std::string_view, 15> kNames = {
    "thread_node", "thread_pid",   "pid_links",       "signal",        "files",
    "fs",          "nsproxy",      "cgroups",         "cred",          "sas_ss_sp",
    "sas_ss_size", "sas_ss_flags", "clear_child_tid", "pdeath_signal", "thread_info.flags"};

}  // namespace

Result<KernelTasks> KernelTasks::Open() {
  ASSIGN_OR_RETURN(KernelMemory memory, KernelMemory::Open());
  KernelTasks tasks(std::move(memory));
  RETURN_IF_ERROR(tasks.FindFields());
  RETURN_IF_ERROR(tasks.FindNumber());
  RETURN_IF_ERROR(tasks.FindLinks());
  Status tried;
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([&] { tried = tasks.TryHere(); }).join();
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  RETURN_IF_ERROR(tried);
  // The rest of the way once, on ourselves: then all names that it takes are known.
  ASSIGN_OR_RETURN(const UniqueFd own, OpenAt(AT_FDCWD, "/proc/self", O_PATH | O_DIRECTORY));
  ASSIGN_OR_RETURN(const KernelAddress leader, tasks.LeaderOf(own.get()));
  RETURN_IF_ERROR(tasks.ThreadsHead(leader).status());
  tasks.memory_.ForgetDescription();
  return tasks;
}

Status KernelTasks::FindFields() {
  static_assert(kNames.size() == kFields);
  for (std::size_t i = 0; i < kFields; ++i) {
    ASSIGN_OR_RETURN(const KernelBtf::Field field, memory_.btf().Find("task_struct", kNames[i]));
    at_[i] = field.offset;
    task_bytes_ = std::max<std::size_t>(task_bytes_, field.offset + std::size_t{field.size});
  }
  if (task_bytes_ > kMostTaskBytes) return FailedPrecondition("struct task_struct is too large");
  return OkStatus();
}

Result<KernelTask> KernelTasks::Self() {
  std::vector<std::byte> task(task_bytes_);
  ASSIGN_OR_RETURN(const KernelAddress self, memory_.Current());
  RETURN_IF_ERROR(memory_.Read(self, task));
  return Read(task);
}

// By a thread of ours, of whose flags others change as the kernel pleases.
Result<std::uint64_t> KernelTasks::FindCounterFlag() {
#ifdef __x86_64__
  ASSIGN_OR_RETURN(const KernelAddress self, memory_.Current());
  const KernelAddress flags = self + at_[kThreadFlags];
  ASSIGN_OR_RETURN(const auto on, memory_.Value<std::uint64_t>(flags));
  if (::prctl(PR_SET_TSC, PR_TSC_SIGSEGV) != 0) return SyscallError(errno, "PR_SET_TSC");
  const auto off = memory_.Value<std::uint64_t>(flags);
  ::prctl(PR_SET_TSC, PR_TSC_ENABLE);
  RETURN_IF_ERROR(off.status());
  ASSIGN_OR_RETURN(const auto on_again, memory_.Value<std::uint64_t>(flags));
  const std::uint64_t changed = *off & ~on & ~on_again;
  if (!std::has_single_bit(changed)) return FailedPrecondition("the flags of a thread change");
  return changed;
#else
  return std::uint64_t{0};
#endif
}

// Sets each thing in this thread, which ends afterwards, and looks whether it is where we look for it.
Status KernelTasks::TryHere() {
  ASSIGN_OR_RETURN(counter_flag_, FindCounterFlag());
  std::vector<char> room(65536);
  const stack_t stack = {
      .ss_sp = room.data(), .ss_flags = static_cast<int>(kAutoDisarm), .ss_size = room.size()};
  stack_t before = {};
  if (::sigaltstack(&stack, &before) != 0) return SyscallError(errno, "sigaltstack");
  // No signal is to be handled in what is gone.
  const absl::Cleanup put_back = [&before] { ::sigaltstack(&before, nullptr); };
  KernelTask told;
  if (::prctl(PR_SET_PDEATHSIG, SIGURG) != 0 ||
      ::prctl(PR_GET_TID_ADDRESS, &told.clear_tid_address) != 0) {
    return SyscallError(errno, "prctl");
  }
  const int bits = ::prctl(PR_GET_SECUREBITS) ^ SECBIT_NO_SETUID_FIXUP;
  const bool may_set = ::prctl(PR_SET_SECUREBITS, bits) == 0;  // CAP_SETPCAP
  told.secure_bits = static_cast<std::uint32_t>(::prctl(PR_GET_SECUREBITS));
  told.stack = reinterpret_cast<std::uint64_t>(room.data());
  told.stack_bytes = room.size();
  told.stack_flags = kAutoDisarm;
  told.parent_death_signal = SIGURG;
  told.time_stamp_counter = PR_TSC_ENABLE;
  ASSIGN_OR_RETURN(const KernelTask seen, Self());
  told.files = seen.files;
  told.directories = seen.directories;
  told.namespaces = seen.namespaces;
  told.cgroups = seen.cgroups;
  if (seen == told && may_set) return OkStatus();
  return FailedPrecondition("a thread is not described as it is");
}

template <typename T>
T KernelTasks::Value(Bytes task, Field field) const {
  T value = {};
  std::memcpy(&value, task.data() + at_[field], sizeof(value));
  return value;
}

Status KernelTasks::FindLinks() {
  const KernelBtf& btf = memory_.btf();
  ASSIGN_OR_RETURN(const KernelBtf::Field inode, btf.Find("proc_inode", "vfs_inode"));
  ASSIGN_OR_RETURN(const std::uint32_t kind, btf.Constant("PIDTYPE_TGID"));
  ASSIGN_OR_RETURN(const std::uint32_t head_bytes, btf.SizeOf("hlist_head"));
  ASSIGN_OR_RETURN(const std::uint32_t node_bytes, btf.SizeOf("hlist_node"));
  inode_at_ = inode.offset;
  leaders_at_ = std::uint64_t{kind} * head_bytes;
  leader_link_at_ = at_[kPidLinks] + std::uint64_t{kind} * node_bytes;
  return OkStatus();
}

Result<KernelAddress> KernelTasks::LeaderOf(int proc) {
  ASSIGN_OR_RETURN(const KernelAddress file, memory_.FileOf(proc));
  ASSIGN_OR_RETURN(const KernelAddress inode, memory_.Number(file, "file", "f_inode"));
  ASSIGN_OR_RETURN(const KernelAddress pid, memory_.Number(inode - inode_at_, "proc_inode", "pid"));
  ASSIGN_OR_RETURN(const KernelAddress heads, memory_.AddressOf(pid, "pid", "tasks"));
  ASSIGN_OR_RETURN(const auto node, memory_.Value<KernelAddress>(heads + leaders_at_));
  if (node == 0) return NotFound("the process is gone");
  return node - leader_link_at_;
}

Result<KernelAddress> KernelTasks::ThreadsHead(KernelAddress leader) {
  ASSIGN_OR_RETURN(const KernelAddress signal, memory_.Number(leader, "task_struct", "signal"));
  return memory_.AddressOf(signal, "signal_struct", "thread_head");
}

// Where a struct pid has its number in our pid namespace.
Status KernelTasks::FindNumber() {
  const KernelBtf& btf = memory_.btf();
  ASSIGN_OR_RETURN(const KernelAddress self, memory_.Current());
  ASSIGN_OR_RETURN(const KernelAddress pid, memory_.Number(self, "task_struct", "thread_pid"));
  ASSIGN_OR_RETURN(const std::uint64_t level, memory_.Number(pid, "pid", "level"));
  ASSIGN_OR_RETURN(const KernelBtf::Field levels, btf.Find("pid", "level"));
  ASSIGN_OR_RETURN(const KernelBtf::Field numbers, btf.Find("pid", "numbers"));
  ASSIGN_OR_RETURN(const KernelBtf::Field number, btf.Find("upid", "nr"));
  ASSIGN_OR_RETURN(const std::uint32_t bytes, btf.SizeOf("upid"));
  level_ = static_cast<std::uint32_t>(level);
  level_at_ = levels.offset;
  number_at_ = numbers.offset + level_ * bytes + number.offset;
  return OkStatus();
}

Result<pid_t> KernelTasks::NumberOf(Bytes task) {
  const auto pid = Value<KernelAddress>(task, kThreadPid);
  ASSIGN_OR_RETURN(const auto level, memory_.Value<std::uint32_t>(pid + level_at_));
  if (level < level_) return NotFound("a thread outside of our pid namespace");
  return memory_.Value<pid_t>(pid + number_at_);
}

Result<KernelTask> KernelTasks::Read(Bytes task) {
  KernelTask read;
  read.files = Value<KernelAddress>(task, kFiles);
  read.directories = Value<KernelAddress>(task, kFs);
  read.namespaces = Value<KernelAddress>(task, kNsproxy);
  read.cgroups = Value<KernelAddress>(task, kCgroups);
  read.stack = Value<std::uint64_t>(task, kSasSp);
  read.stack_bytes = Value<std::uint64_t>(task, kSasSize);
  read.stack_flags = (Value<std::uint32_t>(task, kSasFlags) & kAutoDisarm) |
                     (read.stack_bytes == 0 ? std::uint32_t{SS_DISABLE} : 0);
  read.clear_tid_address = Value<std::uint64_t>(task, kClearChildTid);
  read.parent_death_signal = Value<std::int32_t>(task, kPdeathSignal);
  const bool is_off = (Value<std::uint64_t>(task, kThreadFlags) & counter_flag_) != 0;
  read.time_stamp_counter = is_off ? PR_TSC_SIGSEGV : PR_TSC_ENABLE;
  const auto credentials = Value<KernelAddress>(task, kCred);
  auto known = secure_bits_.find(credentials);
  if (known == secure_bits_.end()) {
    ASSIGN_OR_RETURN(const std::uint64_t bits, memory_.Number(credentials, "cred", "securebits"));
    known = secure_bits_.emplace(credentials, static_cast<std::uint32_t>(bits)).first;
  }
  read.secure_bits = known->second;
  return read;
}

Result<std::map<pid_t, KernelTask>> KernelTasks::ThreadsOf(int proc) {
  secure_bits_.clear();  // what was at an address may be gone
  ASSIGN_OR_RETURN(const KernelAddress leader, LeaderOf(proc));
  ASSIGN_OR_RETURN(const KernelAddress head, ThreadsHead(leader));
  std::map<pid_t, KernelTask> threads;
  std::vector<std::byte> task(task_bytes_);
  ASSIGN_OR_RETURN(auto node, memory_.Value<KernelAddress>(head));  // list_head.next is first
  for (std::size_t i = 0; node != head; ++i) {
    if (i == kMostThreads) return DataLoss("the kernel's list of threads has no end");
    RETURN_IF_ERROR(memory_.Read(node - at_[kThreadNode], task));
    ASSIGN_OR_RETURN(const pid_t tid, NumberOf(task));
    ASSIGN_OR_RETURN(threads[tid], Read(task));
    node = Value<KernelAddress>(task, kThreadNode);
  }
  return threads;
}

}  // namespace stasis::engine
