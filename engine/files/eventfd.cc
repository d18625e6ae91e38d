// eventfd(2): a 64-bit counter behind the link "anon_inode:[eventfd]".
//
// State    fdinfo "eventfd-count" (hexadecimal); "eventfd-semaphore" from Linux 6.5 on
// Image    FD_EVENTFD; EFD_SEMAPHORE is a field of ours, which CRIU skips: its eventfd loses the
//          flag
// Restore  eventfd(2) takes its first value as unsigned int, so the counter is written afterwards
// Source   eventfd(2), proc_pid_fdinfo(5); tested on 6.18
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) { return file.link == "anon_inode:[eventfd]"; }

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const Result<EventfdInfo> info = ParseEventfd(file.fdinfo);
  if (!info.ok()) return Annotate(info.status(), NameOf(file));
  image::FileEntry entry = NewEntry(file, image::FD_EVENTFD);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_efd()));
  entry.mutable_efd()->set_counter(info->counter);
  if (info->semaphore) {
    entry.mutable_efd()->set_stasis_semaphore(*info->semaphore);
  } else {
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
