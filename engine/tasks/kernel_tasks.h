// What the kernel keeps of the threads of a process, read from its own structures: a microsecond each, where to let a
// thread tell takes thirty, and to look into its files of /proc as long.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "engine/base/kernel_memory.h"
#include "engine/base/status.h"

namespace stasis::engine {

struct KernelTask {
  /// What it shares with others, by its address: the same one is the same thing.
  KernelAddress files = 0, directories = 0, namespaces = 0, cgroups = 0;
  /// What else only it can tell, as sigaltstack(2), off that stack, and prctl(2) give it.
  std::uint64_t stack = 0, stack_bytes = 0;
  std::uint32_t stack_flags = 0;
  std::uint64_t clear_tid_address = 0;
  std::uint32_t secure_bits = 0;
  std::int32_t parent_death_signal = 0;
  std::int32_t time_stamp_counter = 0;  ///< PR_TSC_ENABLE, PR_TSC_SIGSEGV

  bool operator==(const KernelTask&) const = default;
};

/// For one thread of ours at a time.
class KernelTasks {
 public:
  /// Threads of a process from which on it saves time to open this.
  static constexpr std::size_t kWorthIt = 64;

  /// Takes some 20 ms, once. FailedPrecondition, PermissionDenied, NotFound: this kernel does not let us, or is not as
  /// we know it.
  static Result<KernelTasks> Open();

  /// The threads of a process that stands still, by their ids as we see them. `proc`: its open directory /proc/PID.
  Result<std::map<pid_t, KernelTask>> ThreadsOf(int proc);

 private:
  // Of struct task_struct.
  enum Field : std::size_t {
    kThreadNode,
    kThreadPid,
    kPidLinks,
    kSignal,
    kFiles,
    kFs,
    kNsproxy,
    kCgroups,
    kCred,
    kSasSp,
    kSasSize,
    kSasFlags,
    kClearChildTid,
    kPdeathSignal,
    kThreadFlags,
    kFields
  };
  using Bytes = std::span<const std::byte>;

  explicit KernelTasks(KernelMemory memory) : memory_(std::move(memory)) {}
  Status FindFields();
  Status FindNumber();
  Status FindLinks();
  Status TryHere();
  Result<std::uint64_t> FindCounterFlag();
  Result<KernelTask> Self();
  template <typename T>
  T Value(Bytes task, Field field) const;
  Result<KernelAddress> LeaderOf(int proc);
  Result<KernelAddress> ThreadsHead(KernelAddress leader);
  Result<pid_t> NumberOf(Bytes task);
  Result<KernelTask> Read(Bytes task);

  KernelMemory memory_;
  std::array<std::uint32_t, kFields> at_ = {};
  std::size_t task_bytes_ = 0;                  // as far as we read one
  std::uint32_t level_ = 0;                     // of our pid namespace, below the first
  std::uint32_t level_at_ = 0, number_at_ = 0;  // in a struct pid
  std::uint64_t inode_at_ = 0;                  // in a struct proc_inode
  std::uint64_t leaders_at_ = 0;                // in the tasks of a struct pid
  std::uint64_t leader_link_at_ = 0;            // in a task_struct
  std::uint64_t counter_flag_ = 0;              // of kThreadFlags: its time-stamp counter is off
  std::map<KernelAddress, std::uint32_t> secure_bits_;  // of credentials, while they stand still
};

}  // namespace stasis::engine
