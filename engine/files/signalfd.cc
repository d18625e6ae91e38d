// signalfd(2): signals read as records, behind the link "anon_inode:[signalfd]".
//
// State    fdinfo "sigmask": the watched set. Pending signals belong to the reading task, not to it
// Restore  signalfd(2) with the kernel's 64-bit set, so that glibc's own two signals are kept as
//          well
// Source   signalfd(2), proc_pid_fdinfo(5); tested on 6.18
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) { return file.link == "anon_inode:[signalfd]"; }

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const Result<std::uint64_t> mask = ParseSignalfdMask(file.fdinfo);
  if (!mask.ok()) return Annotate(mask.status(), NameOf(file));
  image::FileEntry entry = NewEntry(file, image::FD_SIGNALFD);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_sgfd()));
  entry.mutable_sgfd()->set_watched(*mask);
  return entry;
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext&) {
  if (!entry.has_sgfd()) return DataLoss("no signalfd in the entry");
  const std::uint64_t mask = entry.sgfd().watched();
  UniqueFd fd(static_cast<int>(
      ::syscall(SYS_signalfd4, -1, &mask, sizeof(mask), SFD_CLOEXEC | SFD_NONBLOCK)));
  if (!fd) {
    return SyscallError(errno, "signalfd");
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.sgfd().flags()));
  return fd;
}

}  // namespace

const FileKind kSignalfd = {
    .name = "signalfd", .owns = Owns, .dump = Dump, .type = image::FD_SIGNALFD, .restore = Restore};

}  // namespace stasis::engine
