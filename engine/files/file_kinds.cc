#include <sys/socket.h>

#include <array>

#include "engine/files/file_kind.h"

namespace stasis::engine {
namespace {

#define STASIS_KIND_ADDRESS(kind) &(kind),
constexpr auto kKinds = std::to_array<const FileKind*>({STASIS_FILE_KINDS(STASIS_KIND_ADDRESS)});
#undef STASIS_KIND_ADDRESS

const FileKind* KindOf(image::FdTypes type) {
  for (const FileKind* const kind : kKinds) {
    if (kind->type == type) return kind;
  }
  return nullptr;
}

std::string NameOf(const image::FileEntry& entry) {
  const FileKind* const kind = KindOf(entry.type());
  return "file " + std::to_string(entry.id()) + " (" +
         (kind != nullptr ? std::string(kind->name) : image::FdTypes_Name(entry.type())) + ")";
}

// Why no kind took `file`, as far as we can tell.
std::string WhatIs(const OpenFile& file) {
  // Permission events hold up other processes, marks name inodes and mounts by number alone.
  if (file.link == "anon_inode:[fanotify]") return "a fanotify group (fanotify_init)";
  int family = 0;
  socklen_t length = sizeof(family);
  if (::getsockopt(file.borrowed.get(), SOL_SOCKET, SO_DOMAIN, &family, &length) == 0) {
    return "a socket of address family " + std::to_string(family);
  }
  return "this kind of file";
}

// The owner in whichever message the entry has, or null.
const image::FownEntry* OwnerIn(const image::FileEntry& entry) {
  switch (entry.type()) {
    case image::FD_REG:
      return &entry.reg().fown();
    case image::FD_PIPE:
      return &entry.pipe().fown();
    case image::FD_INETSK:
      return &entry.isk().fown();
    case image::FD_UNIXSK:
      return &entry.usk().fown();
    case image::FD_EVENTFD:
      return &entry.efd().fown();
    case image::FD_EVENTPOLL:
      return &entry.epfd().fown();
    case image::FD_SIGNALFD:
      return &entry.sgfd().fown();
    case image::FD_INOTIFY:
      return &entry.ify().fown();
    case image::FD_MEMFD:
      return &entry.memfd().fown();
    case image::FD_TIMERFD:
      return &entry.tfd().fown();
    case image::FD_PIDFD:
      return &entry.pidfd().fown();
    case image::FD_TTY:
      return &entry.tty().fown();
    case image::FD_NETLINKSK:
      return &entry.nlsk().fown();
    case image::FD_PACKETSK:
      return &entry.psk().fown();
    case image::FD_EXT:
      return &entry.ext().fown();
    default:
      return nullptr;
  }
}

const UserIds kOurIds;

}  // namespace

const UserIds& FileDumpContext::ids() const { return kOurIds; }
const UserIds& FileRestoreContext::ids() const { return kOurIds; }

std::string NameOf(const OpenFile& file) {
  // What is not in a descriptor table (a mapping, an executable) has no number.
  const std::string number = file.fd < 0 ? "" : " fd " + std::to_string(file.fd);
  return "pid " + std::to_string(file.ns_pid) + number + " (" + file.link + ")";
}

Result<image::FileEntry> DumpFile(const OpenFile& file, FileDumpContext& context) {
  for (const FileKind* const kind : kKinds) {
    if (kind->owns(file)) return kind->dump(file, context);
  }
  return Unimplemented(NameOf(file) + ": " + WhatIs(file) + " cannot be checkpointed yet");
}

Result<UniqueFd> RestoreFile(const image::FileEntry& entry, FileRestoreContext& context) {
  const FileKind* const kind = KindOf(entry.type());
  if (kind == nullptr) {
    return Unimplemented(NameOf(entry) + ": this kind of file cannot be restored yet");
  }
  Result<UniqueFd> fd = kind->restore(entry, context);
  if (!fd.ok()) return Annotate(fd.status(), NameOf(entry));
  return fd;
}

Status FinishFile(const image::FileEntry& entry, int fd, ProcessActor& process) {
  const FileKind* const kind = KindOf(entry.type());
  if (kind != nullptr && kind->finish != nullptr) {
    RETURN_IF_ERROR(Annotate(kind->finish(entry, fd, process), NameOf(entry)));
  }
  const image::FownEntry* const owner = OwnerIn(entry);
  if (owner == nullptr || (owner->pid() == 0 && owner->signum() == 0)) return OkStatus();
  return Annotate(process.SetOwner(fd, *owner), NameOf(entry));
}

Result<std::vector<int>> WaitingIn(OpenFile& file) {
  for (const FileKind* const kind : kKinds) {
    if (kind->waiting != nullptr && kind->owns(file)) return kind->waiting(file);
  }
  return std::vector<int>();
}

Status CompleteFiles(FileRestoreContext& context) {
  for (const FileKind* const kind : kKinds) {
    if (kind->complete != nullptr) RETURN_IF_ERROR(Annotate(kind->complete(context), kind->name));
  }
  return OkStatus();
}

}  // namespace stasis::engine
