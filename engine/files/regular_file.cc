// Regular files, directories, harmless devices, and whatever else is open by O_PATH: things with a
// path.
//
// State    path, flags, offset; size and type for a check at restore
// Dump     the path must lead to the open file in its holder's root. What it does not lead to
//          any more was deleted or replaced: it is saved (ghost_file.cc)
// Restore  openat(2) in the new root, with the rights of the process under restore
// Not here terminals (terminal.cc), POSIX message queues (message_queue.cc), file locks (file_locks.cc). Other devices: refused
// Source   open(2), openat2(2), proc_pid_fd(5); tested on 6.18
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/ghost_file.h"
#include "engine/files/message_queue.h"
#include "engine/files/path.h"

namespace stasis::engine {
namespace {

// Not in every linux/magic.h: <linux/magic.h> of 6.1 has it, musl's copies do not.
constexpr std::uint64_t kNsfsMagic = 0x6e736673;

bool Owns(const OpenFile& file) {
  // Objects without a name ("anon_inode:[eventfd]") may have any type.
  if (!file.link.starts_with('/')) return false;
  const mode_t type = file.st.st_mode & S_IFMT;
  return (file.flags & O_PATH) != 0 || type == S_IFREG || type == S_IFDIR || type == S_IFCHR ||
         type == S_IFBLK;
}

// Why `file`, wherever its path leads, cannot be opened again; OK when it can.
Status CheckType(const OpenFile& file) {
  const std::string name = NameOf(file);
  if (file.fs_magic == kNsfsMagic) {
    return Unimplemented(name + ": a namespace held open cannot be checkpointed yet");
  }
  if ((file.flags & O_PATH) != 0) return OkStatus();
  const unsigned number = major(file.st.st_rdev);
  if ((S_ISCHR(file.st.st_mode) || S_ISBLK(file.st.st_mode)) &&
      !IsHarmlessDevice(file.st.st_mode, file.st.st_rdev)) {
    return Unimplemented(name + ": device " + std::to_string(number) + ":" +
                         std::to_string(minor(file.st.st_rdev)) +
                         " has a state of its own and cannot be checkpointed");
  }
  return OkStatus();
}

// From its beginning; its offset stays.
Result<std::string> ReadAgain(int fd) {
  constexpr std::size_t kLimitBytes = std::size_t{16} << 20;
  std::string text;
  std::array<char, 65536> piece;
  while (text.size() < kLimitBytes) {
    const ssize_t got = ::pread(fd, piece.data(), piece.size(), static_cast<off_t>(text.size()));
    if (got < 0) return SyscallError(errno, "read");
    if (got == 0) return text;
    text.append(piece.data(), static_cast<std::size_t>(got));
  }
  return ResourceExhausted("a long file");
}

// The file of its holder that takes the place of the mounts of a process that is dead, at `path`; empty: none.
// Rule: these can still be read, as the ones of a mount namespace and a root directory, and not be opened any more
// (mounts_open_common() in fs/proc_namespace.c).
std::string SameMounts(const OpenFile& file, const std::string& path,
                       const FileDumpContext& context) {
  constexpr std::string_view kOfMounts[] = {"/mountinfo", "/mounts", "/mountstats"};
  const std::string name = path.substr(std::min(path.rfind('/'), path.size()));
  if (file.fs_magic != PROC_SUPER_MAGIC ||
      std::ranges::find(kOfMounts, name) == std::end(kOfMounts)) {
    return {};
  }
  std::string own = "/proc/" + std::to_string(file.ns_pid) + name;
  const Result<UniqueFd> fd = OpenInRoot(context.RootOf(file), own, O_RDONLY);
  if (!fd.ok()) return {};
  const Result<std::string> of_holder = ReadFd(fd->get());
  const Result<std::string> of_dead = ReadAgain(file.borrowed.get());
  return of_holder.ok() && of_dead.ok() && *of_holder == *of_dead ? own : std::string();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  if (IsMessageQueue(file) && (file.flags & O_PATH) == 0) return DumpMessageQueue(file, context);
  RETURN_IF_ERROR(CheckType(file));
  ASSIGN_OR_RETURN(PathState state, LookUp(file, context));
  if (!state.reaches) {
    if (std::string same = SameMounts(file, state.path, context); !same.empty()) {
      state = {.path = std::move(same), .reaches = true};
    }
  }
  image::FileEntry entry = NewEntry(file, image::FD_REG);
  ASSIGN_OR_RETURN(*entry.mutable_reg(), DumpRegEntry(file, file.id, state.path, context));
  if (!state.reaches) RETURN_IF_ERROR(DumpGhost(file, file.id, state.path, context));
  return entry;
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_reg()) return DataLoss("no regular file in the entry");
  if (entry.has_stasis_queue()) return RestoreMessageQueue(entry, context);
  if (entry.reg().ext()) {
    return Unimplemented(entry.reg().name() + ": a file that came from outside the tree");
  }
  ASSIGN_OR_RETURN(const auto remap, RemapOf(entry.id(), context));
  if (remap) return RestoreRemapped(entry.reg(), *remap, context);
  return OpenRegEntry(entry.reg(), context);
}

}  // namespace

const FileKind kRegularFile = {.name = "regular file",
                               .owns = Owns,
                               .dump = Dump,
                               .type = image::FD_REG,
                               .restore = Restore,
                               .complete = CompleteMessageQueues};

}  // namespace stasis::engine
