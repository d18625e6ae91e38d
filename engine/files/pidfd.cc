// pidfd_open(2): a process as a file, behind the link "anon_inode:[pidfd]".
//
// State    fdinfo "Pid", -1 once the process is dead and waited for; O_NONBLOCK, PIDFD_THREAD (O_EXCL)
// Image    FD_PIDFD; those of one dead process are joined by the inode's number
// Restore  when all tasks of the tree are there, by us: it makes no difference who opens it. For a dead
//          process one of ours that has ended, in the tree's pid namespace: elsewhere pidfd_send_signal(2) would
//          say EINVAL to who holds it
// Lost     how a dead process ended (PIDFD_GET_INFO, Linux 6.15)
// Refused  processes and threads outside the tree
// Source   pidfd_open(2), proc_pid_fdinfo(5), clone(2) on exit_signal, wait(2) __WALL; tested on 6.18
// Rule     A child without an exit signal is waited for by __WALL alone: no other wait of ours sees it.
#include "engine/files/pidfd.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "engine/base/namespace.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kMostDead = 1000;    // they are charged to us, not to the container
constexpr std::uint32_t kThread = O_EXCL;  // PIDFD_THREAD, Linux 6.9
constexpr std::uint32_t kKept = O_NONBLOCK | kThread;

bool Owns(const OpenFile& file) {
  return file.link == "anon_inode:[pidfd]" || file.link.starts_with("pidfd:[");
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const auto pid = text::Number<pid_t>(text::Field(file.fdinfo, "Pid").value_or(""));
  if (!pid.ok()) return Annotate(pid.status(), NameOf(file) + ", fdinfo Pid");
  image::FileEntry entry = NewEntry(file, image::FD_PIDFD);
  image::PidfdEntry& pidfd = *entry.mutable_pidfd();
  RETURN_IF_ERROR(DumpCommon(file, context, pidfd));
  pidfd.set_flags(file.flags & kKept);
  pidfd.set_ino(static_cast<std::uint32_t>(file.st.st_ino));
  pidfd.set_nspid(-1);
  if (*pid == -1) return entry;
  pidfd.set_nspid(context.ToNamespacePid(*pid));
  if (pidfd.nspid() <= 0) {
    return Unimplemented(NameOf(file) + ": its process or thread is not in the tree");
  }
  return entry;
}

Result<UniqueFd> Restore(const image::FileEntry&, FileRestoreContext&) {
  return Unimplemented("a pidfd on its way through a socket");
}

void Await(pid_t pid) {
  while (::waitpid(pid, nullptr, __WALL) < 0 && errno == EINTR) {
  }
}

}  // namespace

// `wanted` 0: any that is free.
Result<pid_t> DeadProcesses::Start(pid_t wanted, int member) const {
  if (pids_.size() + chosen_.size() >= kMostDead) {
    return ResourceExhausted("files of more than " + std::to_string(kMostDead) + " dead processes");
  }
  pid_t made = 0;
  RETURN_IF_ERROR(InNamespace(member, CLONE_NEWPID, [&]() -> Status {
    clone_args clone = {};  // without a signal at its end
    if (wanted != 0) {
      clone.set_tid = reinterpret_cast<std::uint64_t>(&wanted);
      clone.set_tid_size = 1;
    }
    const long pid = ::syscall(SYS_clone3, &clone, sizeof(clone));
    // No more than that: a thread that does not exist here may hold any lock.
    if (pid == 0) ::syscall(SYS_exit_group, 0);
    if (pid < 0 && errno == EEXIST) {
      return AlreadyExists("pid " + std::to_string(wanted) + " is taken by another process");
    }
    if (pid < 0) return SyscallError(errno, "clone3");
    made = static_cast<pid_t>(pid);
    return OkStatus();
  }));
  // Whoever comes after it finds it ended.
  siginfo_t ended = {};
  while (::waitid(P_PID, static_cast<id_t>(made), &ended, WEXITED | WNOWAIT | __WALL) != 0) {
    if (errno != EINTR) return SyscallError(errno, "waitid");
  }
  return made;
}

Result<pid_t> DeadProcesses::Get(std::uint32_t inode, int member) {
  const auto known = pids_.find(inode);
  if (known != pids_.end()) return known->second;
  ASSIGN_OR_RETURN(const pid_t made, Start(0, member));
  pids_.emplace(inode, made);
  return made;
}

Status DeadProcesses::Make(pid_t pid, int member) {
  if (chosen_.contains(pid)) return OkStatus();
  ASSIGN_OR_RETURN(const pid_t made, Start(pid, member));
  chosen_.emplace(pid, made);
  return OkStatus();
}

void DeadProcesses::End() {
  for (const auto& [pid, ours] : chosen_) Await(ours);
  for (const auto& [inode, pid] : pids_) Await(pid);
  chosen_.clear();
  pids_.clear();
}

Result<UniqueFd> OpenPidfd(const image::PidfdEntry& pidfd, int member,
                           const std::function<pid_t(pid_t)>& host_pid, DeadProcesses& dead) {
  pid_t pid = 0;
  if (pidfd.nspid() > 0) {
    pid = host_pid(pidfd.nspid());
    if (pid == 0) {
      return InvalidArgument("a pidfd of task " + std::to_string(pidfd.nspid()) +
                             ", which the checkpoint does not have");
    }
  } else {
    ASSIGN_OR_RETURN(pid, dead.Get(pidfd.ino(), member));
  }
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, pidfd.flags() & kKept)));
  if (!fd) {
    return SyscallError(errno, "pidfd_open");
  }
  return fd;
}

const FileKind kPidfd = {
    .name = "pidfd", .owns = Owns, .dump = Dump, .type = image::FD_PIDFD, .restore = Restore};

}  // namespace stasis::engine
