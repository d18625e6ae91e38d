// Source  time_namespaces(7), setns(2); timens_install() in kernel/time/namespace.c; tested on 6.18
// Rule    Offsets can be written until the first task enters; unshare(2) only makes the namespace that the
//         caller's children will be in. So a helper makes it, and the root enters by setns(2).
// Rule    setns(2) wants a caller with one thread and CAP_SYS_ADMIN in its own user namespace, and in that which owns the time
//         namespace: the one of whoever made it. So the helper makes it in that of the root.
#include "engine/tasks/restore_clocks.h"

#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>

#include "engine/base/io.h"
#include "engine/base/user_ids.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/tasks/clocks.h"
#include "engine/tasks/process_tree.h"

namespace stasis::engine {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

Result<nanoseconds> ToTime(const image::Timespec& entry) {
  constexpr std::uint64_t kMostSeconds = std::uint64_t{1} << 32;  // far less than what overflows
  if (entry.tv_sec() > kMostSeconds || entry.tv_nsec() >= 1'000'000'000) {
    return InvalidArgument("timens: an impossible time");
  }
  return seconds(entry.tv_sec()) + nanoseconds(entry.tv_nsec());
}

// The clocks at the dump; empty where nobody wrote them down (CRIU on a kernel without time namespaces).
Result<std::optional<Clocks>> SavedClocks(const ImageSource& source) {
  // Named by the tree's namespace where it had one of its own, else 0. It is one file in any case.
  std::string name = ImageName("timens", 0);
  for (const std::string& file : source.Names()) {
    if (file.starts_with("timens-")) name = file;
  }
  ASSIGN_OR_RETURN(const std::vector<image::TimensEntry> entries,
                   ReadRecords<image::TimensEntry>(source, name, "timens"));
  if (entries.empty()) return std::nullopt;
  Clocks clocks;
  ASSIGN_OR_RETURN(clocks.monotonic, ToTime(entries.front().monotonic()));
  ASSIGN_OR_RETURN(clocks.boottime, ToTime(entries.front().boottime()));
  return clocks;
}

// A time namespace with `offsets`, which lives as long as the descriptor or a task in it.
Result<UniqueFd> MakeNamespace(const std::string& program, const Clocks& offsets, int root_proc) {
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::Of(root_proc));
  UniqueFd user;
  if (!ids.are_ours()) {
    ASSIGN_OR_RETURN(user, OpenAt(root_proc, "ns/user", O_RDONLY));
  }
  constexpr int kUserFd = 3;
  std::array<int, 2> in = {}, out = {};
  if (::pipe2(in.data(), O_CLOEXEC) != 0) return SyscallError(errno, "pipe");
  UniqueFd in_read(in[0]), in_write(in[1]);
  if (::pipe2(out.data(), O_CLOEXEC) != 0) return SyscallError(errno, "pipe");
  UniqueFd out_read(out[0]), out_write(out[1]);
  std::array<std::string, 5> words = {
      program, "time-namespace", std::to_string(offsets.monotonic.count()),
      std::to_string(offsets.boottime.count()), std::to_string(kUserFd)};
  // Nobody enters the user namespace that it is in already (setns(2)).
  char* const argv[] = {words[0].data(),
                        words[1].data(),
                        words[2].data(),
                        words[3].data(),
                        user ? words[4].data() : nullptr,
                        nullptr};
  char* const environment[] = {nullptr};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in_read.get(), 0);
  ::posix_spawn_file_actions_adddup2(&actions, out_write.get(), 1);
  if (user) ::posix_spawn_file_actions_adddup2(&actions, user.get(), kUserFd);
  pid_t helper = 0;
  const int error = ::posix_spawn(&helper, program.c_str(), &actions, nullptr, argv, environment);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return SyscallError(error, "run " + program);
  out_write.Reset();
  char ready = 0;
  const bool made = ::read(out_read.get(), &ready, 1) == 1;
  Result<UniqueFd> ns =
      made ? OpenAt(AT_FDCWD, "/proc/" + std::to_string(helper) + "/ns/time_for_children", O_RDONLY)
           : Unimplemented("this kernel makes no time namespace; the reason is on standard error");
  in_write.Reset();  // end of its input: it ends
  while (::waitpid(helper, nullptr, 0) < 0 && errno == EINTR) {
  }
  return ns;
}

Status Enter(RestoredProcess& root, const UniqueFd& ns) {
  ASSIGN_OR_RETURN(const int number, SendInto(root, ns.get()));
  const Status entered = root.remote->Call("setns", SYS_setns, number, CLONE_NEWTIME).status();
  RETURN_IF_ERROR(root.remote->Call("close", SYS_close, number).status());
  return entered;
}

}  // namespace

Status RestoreClocks(RestoredProcess& root, const ImageSource& source, const std::string& program,
                     bool may_go_back, std::vector<std::string>& notes, bool own_namespace) {
  ASSIGN_OR_RETURN(const std::optional<Clocks> saved, SavedClocks(source));
  if (!saved) return OkStatus();
  ASSIGN_OR_RETURN(const Clocks now, ReadClocks(root.proc.get()));
  const nanoseconds least = own_namespace ? nanoseconds::min() : nanoseconds(0);
  const Clocks behind = {.monotonic = std::max(saved->monotonic - now.monotonic, least),
                         .boottime = std::max(saved->boottime - now.boottime, least)};
  const nanoseconds most = std::max(behind.monotonic, behind.boottime);
  if (most.count() == 0 && !own_namespace) return OkStatus();

  ASSIGN_OR_RETURN(Clocks offsets, ClockOffsets(root.proc.get()));
  offsets.monotonic += behind.monotonic;
  offsets.boottime += behind.boottime;
  ASSIGN_OR_RETURN(const UniqueFd ns, MakeNamespace(program, offsets, root.proc.get()));
  const Status entered = Enter(root, ns);
  if (ErrnoOf(entered) != EPERM) return entered;
  if (most.count() <= 0) {
    notes.push_back(
        "the program had clocks of its own (a time namespace), and reads those of this machine "
        "now, which are ahead: "
        "it has no right to such a namespace (CAP_SYS_ADMIN)");
    return OkStatus();
  }
  const auto count = std::chrono::ceil<seconds>(most).count();
  const std::string reason =
      "the clocks of this machine (CLOCK_MONOTONIC, CLOCK_BOOTTIME) are " + std::to_string(count) +
      " s behind those that the program has read, and it has no right to a time namespace "
      "(CAP_SYS_ADMIN)";
  if (!may_go_back) {
    return FailedPrecondition(reason +
                              ": its timers could hang for that long; restore it on a machine that "
                              "has run for longer, or allow it (docs/supported.md, clocks)");
  }
  notes.push_back(reason);
  return OkStatus();
}

}  // namespace stasis::engine
