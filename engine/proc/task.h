// Text of /proc/PID/{status,stat,limits,timers} into structs. No system call is made here.
#pragma once

#include <absl/container/inlined_vector.h>
#include <sys/types.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

/// The number of a task in each pid namespace: outermost (reader's) first, own last.
using NamespaceIds = absl::InlinedVector<pid_t, 4>;

/// /proc/PID/status, proc_pid_status(5).
struct TaskStatus {
  std::string name;  ///< Unescaped ("\\n" and "\\\\" are undone).
  char state = '?';  ///< R S D T t Z X I
  pid_t tgid = 0;
  pid_t pid = 0;
  pid_t ppid = 0;
  pid_t tracer_pid = 0;
  std::uint32_t umask = 0;
  std::array<std::uint32_t, 4> uid = {};  ///< Real, effective, saved, file system.
  std::array<std::uint32_t, 4> gid = {};
  std::vector<std::uint32_t> groups;
  NamespaceIds ns_tgid, ns_pid, ns_pgid, ns_sid;
  std::uint32_t threads = 0;
  std::uint64_t sig_pending = 0, shared_pending = 0, blocked = 0, ignored = 0, caught = 0;
  std::uint64_t cap_inheritable = 0, cap_permitted = 0, cap_effective = 0, cap_bounding = 0,
                cap_ambient = 0;
  bool no_new_privs = false;
  std::string store_bypass, indirect_branch;  ///< Speculation_…; empty where it is not shown.
  int seccomp = 0;                            ///< 0 none, 1 strict, 2 filter
  int seccomp_filters = 0;                    ///< How many; 0 where the kernel does not say.
  std::uint64_t voluntary_switches = 0;       ///< voluntary_ctxt_switches
};
Result<TaskStatus> ParseTaskStatus(std::string_view text);

/// /proc/PID/stat, proc_pid_stat(5); numbers in brackets are its fields.
struct TaskStat {
  pid_t pid = 0;                                                // (1)
  std::string comm;                                             // (2)
  char state = '?';                                             // (3)
  pid_t ppid = 0, pgrp = 0, session = 0;                        // (4) (5) (6)
  int tty_nr = 0;                                               // (7)
  pid_t tpgid = 0;                                              // (8) -1: no controlling terminal
  std::uint32_t flags = 0;                                      // (9) PF_*
  std::int64_t nice = 0;                                        // (19)
  std::uint64_t start_time = 0;                                 // (22) clock ticks after boot
  std::uint64_t start_code = 0, end_code = 0, start_stack = 0;  // (26) (27) (28)
  std::uint64_t start_data = 0, end_data = 0, start_brk = 0;    // (45) (46) (47)
  std::uint64_t arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;  // (48) to (51)
  int processor = -1;                                                    // (39)
  int exit_signal = 0;                                                   // (38) to the parent
  std::int32_t exit_code = 0;                                            // (52) wait status
};
Result<TaskStat> ParseTaskStat(std::string_view text);

/// /proc/PID/limits, indexed by RLIMIT_* (16 entries); "unlimited" is all ones.
struct ResourceLimit {
  std::uint64_t soft = 0, hard = 0;
};
Result<std::array<ResourceLimit, 16>> ParseLimits(std::string_view text);

/// /proc/PID/timers: POSIX timers, proc_pid_timers(5).
struct PosixTimer {
  int id = 0;
  int signal = 0;
  std::uint64_t sigval = 0;
  int notify = 0;  ///< SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD_ID 4 (bits as sigevent(3type))
  pid_t notify_pid = 0;  ///< In the reader's pid namespace.
  int clock_id = 0;
};
Result<std::vector<PosixTimer>> ParsePosixTimers(std::string_view text);

}  // namespace stasis::engine
