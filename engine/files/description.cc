#include "engine/files/description.h"

#include <fcntl.h>
#include <poll.h>

#include <array>
#include <cerrno>

namespace stasis::engine {
namespace {

// F_SETFL changes these and silently keeps the others, fcntl(2).
constexpr int kChangeable = O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME;

// What an archive may ask open(2) for. Not O_CREAT, O_EXCL, O_TRUNC, O_NOCTTY, which act once, and
// not O_TMPFILE, which stays visible in the flags of an open file and would make another one.
constexpr int kReopenable =
    O_ACCMODE | kChangeable | O_DSYNC | O_SYNC | O_DIRECTORY | O_NOFOLLOW | O_PATH;

// The kernel's number; glibc for 64 bits defines O_LARGEFILE as 0 (asm-generic/fcntl.h).
constexpr int kLargeFile = 0100000;

constexpr int kGetOwnerUids = 17;  // F_GETOWNER_UIDS, not in glibc

}  // namespace

image::FileEntry NewEntry(const OpenFile& file, image::FdTypes type) {
  image::FileEntry entry;
  entry.set_type(type);
  entry.set_id(file.id);
  return entry;
}

Result<image::FownEntry> DumpOwner(const OpenFile& file, FileDumpContext& context) {
  image::FownEntry entry;
  entry.set_uid(0);
  entry.set_euid(0);
  entry.set_signum(0);
  entry.set_pid_type(F_OWNER_TID);
  entry.set_pid(0);
  const int fd = file.borrowed.get();
  // A descriptor of O_PATH takes none of these calls, and never sends a signal (open(2)).
  if ((file.flags & O_PATH) != 0) return entry;

  const int signal = ::fcntl(fd, F_GETSIG);
  if (signal < 0) {
    return SyscallError(errno, "F_GETSIG " + NameOf(file));
  }
  entry.set_signum(static_cast<std::uint32_t>(signal));
  f_owner_ex owner = {};
  if (::fcntl(fd, F_GETOWN_EX, &owner) != 0) {
    return SyscallError(errno, "F_GETOWN_EX " + NameOf(file));
  }
  if (owner.pid == 0) return entry;  // none, or dead
  const pid_t pid = context.ToNamespacePid(owner.pid);
  if (pid == 0) {
    context.Note(NameOf(file) + ": its signals go to a process outside the tree; they will not");
    return entry;
  }
  entry.set_pid_type(static_cast<std::uint32_t>(owner.type));
  entry.set_pid(static_cast<std::uint32_t>(pid));
  // CONFIG_CHECKPOINT_RESTORE; without it the ids stay 0.
  if (std::array<uid_t, 2> uids = {}; ::fcntl(fd, kGetOwnerUids, uids.data()) == 0) {
    entry.set_uid(context.ids().users.ToInside(uids[0]));
    entry.set_euid(context.ids().users.ToInside(uids[1]));
  }
  return entry;
}

int OpenFlags(std::uint32_t saved) { return static_cast<int>(saved) & (kReopenable | kLargeFile); }

Status SetStatusFlags(int fd, std::uint32_t saved) {
  if (::fcntl(fd, F_SETFL, static_cast<int>(saved) & kChangeable) != 0) {
    return SyscallError(errno, "F_SETFL");
  }
  return OkStatus();
}

Result<UniqueFd> Reopen(int fd, int flags) {
  UniqueFd copy(::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags | O_CLOEXEC));
  if (!copy) {
    return SyscallError(errno, "open a descriptor again");
  }
  return copy;
}

Result<UniqueFd> Duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) {
    return SyscallError(
        errno, errno == EMFILE ? "F_DUPFD_CLOEXEC (raise our LimitNOFILE)" : "F_DUPFD_CLOEXEC");
  }
  return copy;
}

Result<short> PollNow(int fd, short events) {
  pollfd waiting = {.fd = fd, .events = events, .revents = 0};
  if (::poll(&waiting, 1, 0) < 0) {
    return SyscallError(errno, "poll");
  }
  return waiting.revents;
}

std::string KeptKey(std::string_view kind, std::uint64_t number) {
  return std::string(kind) + "-" + std::to_string(number);
}

std::string ObjectLink(std::string_view kind, std::uint64_t inode) {
  return std::string(kind) + ":[" + std::to_string(inode) + "]";
}

}  // namespace stasis::engine
