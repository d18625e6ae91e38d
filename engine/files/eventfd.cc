// eventfd(2): a 64-bit counter behind the link "anon_inode:[eventfd]".
//
// State    fdinfo "eventfd-count" (hexadecimal); "eventfd-semaphore" from Linux 6.5 on, before it a look at what a
//          read(2) takes
// Image    FD_EVENTFD; EFD_SEMAPHORE is a field of ours, which CRIU skips: its eventfd loses the
//          flag
// Restore  eventfd(2) takes its first value as unsigned int, so the counter is written afterwards
// Source   eventfd(2), proc_pid_fdinfo(5); tested on 6.1 and 6.18
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) { return file.link == "anon_inode:[eventfd]"; }

std::optional<std::uint64_t> Take(int fd) {
  std::uint64_t value = 0;
  const iovec part = {.iov_base = &value, .iov_len = sizeof(value)};
  // Who else has it open may have taken all.
  if (::preadv2(fd, &part, 1, -1, RWF_NOWAIT) != sizeof(value)) return std::nullopt;
  return value;
}

bool Give(int fd, std::uint64_t value) {
  return value == 0 || ::write(fd, &value, sizeof(value)) == sizeof(value);
}

// A semaphore gives 1 of what is there, others give all. In the end `counter` is there again. Nothing when it
// cannot be found out.
std::optional<bool> TrySemaphore(int fd, std::uint64_t counter) {
  const std::uint64_t added = counter < 2 ? 2 : 0;
  if (!Give(fd, added)) return std::nullopt;
  const std::optional<std::uint64_t> first = Take(fd);
  if (!first) return std::nullopt;
  const bool semaphore = *first == 1;
  const bool back = semaphore && added != 0 ? Take(fd).has_value() : Give(fd, *first - added);
  return back ? std::optional(semaphore) : std::nullopt;
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  Result<EventfdInfo> info = ParseEventfd(file.fdinfo);
  if (!info.ok()) return Annotate(info.status(), NameOf(file));
  if (!info->semaphore && !context.only_looks()) {
    info->semaphore = TrySemaphore(file.borrowed.get(), info->counter);
  }
  image::FileEntry entry = NewEntry(file, image::FD_EVENTFD);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_efd()));
  entry.mutable_efd()->set_counter(info->counter);
  if (info->semaphore) {
    entry.mutable_efd()->set_stasis_semaphore(*info->semaphore);
  } else if (!context.only_looks()) {
    context.Note(NameOf(file) + ": this kernel does not show whether it is a semaphore");
  }
  return entry;
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext&) {
  if (!entry.has_efd()) return DataLoss("no eventfd in the entry");
  const int semaphore = entry.efd().stasis_semaphore() ? EFD_SEMAPHORE : 0;
  // Without EFD_NONBLOCK a counter of all ones, which no write can make, would block us.
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | semaphore));
  if (!fd) {
    return SyscallError(errno, "eventfd");
  }
  const std::uint64_t counter = entry.efd().counter();
  if (::write(fd.get(), &counter, sizeof(counter)) != sizeof(counter)) {
    return SyscallError(errno, "write the eventfd counter");
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.efd().flags()));
  return fd;
}

}  // namespace

const FileKind kEventfd = {
    .name = "eventfd", .owns = Owns, .dump = Dump, .type = image::FD_EVENTFD, .restore = Restore};

}  // namespace stasis::engine
