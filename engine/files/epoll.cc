// epoll_create(2): a set of watched files, behind the link "anon_inode:[eventpoll]".
//
// State    fdinfo, a line a target: number at the time of EPOLL_CTL_ADD, events, data
// Dump     the number may be another file's by now, or closed: a watch lives as long as its file.
//          kcmp(2) KCMP_EPOLL_TFD tells which of the holder's numbers is the watched file
// Restore  the set is made empty; finish() adds the targets once the holder has its descriptors
// Lost     which watches were ready: the kernel looks anew at EPOLL_CTL_ADD, so an edge may be
//          reported twice; a fired EPOLLONESHOT reports errors and hangups, which EPOLL_CTL_ADD
//          always asks for
// Source   epoll(7), kcmp(2), proc_pid_fdinfo(5), fs/eventpoll.c; tested on 6.18
#include <dirent.h>
#include <linux/kcmp.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <map>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/proc/fdinfo.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) { return file.link == "anon_inode:[eventpoll]"; }

// Is the holder's descriptor `fd` the file that `epoll` watches as its `index`-th target numbered
// `tfd`? A number may occur more than once: for the file that has it now, and for others that had
// it.
bool IsTarget(const OpenFile& epoll, int fd, int tfd, std::uint32_t index) {
  // One that waits in a message has a number with us alone.
  const bool held = epoll.fd >= 0;
  kcmp_epoll_slot slot = {.efd = static_cast<std::uint32_t>(held ? epoll.fd : epoll.borrowed.get()),
                          .tfd = static_cast<std::uint32_t>(tfd),
                          .toff = index};
  return ::syscall(SYS_kcmp, epoll.pid, held ? epoll.pid : ::getpid(), KCMP_EPOLL_TFD,
                   static_cast<unsigned long>(fd), &slot) == 0;
}

Result<int> FindTarget(const OpenFile& epoll, int tfd, std::uint32_t index) {
  if (IsTarget(epoll, tfd, tfd, index)) return tfd;
  const std::string path = "/proc/" + std::to_string(epoll.pid) + "/fd";
  DIR* const dir = ::opendir(path.c_str());
  if (dir == nullptr) {
    return SyscallError(errno, "open " + path);
  }
  int found = -1;
  while (const dirent* const entry = ::readdir(dir)) {
    const Result<int> fd = text::Number<int>(entry->d_name);
    if (fd.ok() && IsTarget(epoll, *fd, tfd, index)) found = *fd;
  }
  ::closedir(dir);
  if (found >= 0) return found;
  return Unimplemented(NameOf(epoll) + ": it watches what was descriptor " + std::to_string(tfd) +
                       ", which its holder has closed and another process keeps open; such a watch "
                       "cannot be checkpointed yet");
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const Result<std::vector<EpollTarget>> targets = ParseEpollTargets(file.fdinfo);
  if (!targets.ok()) return Annotate(targets.status(), NameOf(file));
  image::FileEntry entry = NewEntry(file, image::FD_EVENTPOLL);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_epfd()));
  std::map<int, std::uint32_t> seen;  // how many targets had that number, in the kernel's order
  for (const EpollTarget& target : *targets) {
    ASSIGN_OR_RETURN(const int fd, FindTarget(file, target.fd, seen[target.fd]++));
    image::EventpollTfdEntry& watch = *entry.mutable_epfd()->add_tfd();
    watch.set_id(0);
    watch.set_tfd(static_cast<std::uint32_t>(fd));
    watch.set_events(target.events);
    watch.set_data(target.data);
    watch.set_dev(target.device);
    watch.set_inode(target.inode);
    watch.set_pos(target.pos);
  }
  return entry;
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext&) {
  if (!entry.has_epfd()) return DataLoss("no epoll in the entry");
  UniqueFd fd(::epoll_create1(EPOLL_CLOEXEC));
  if (!fd) {
    return SyscallError(errno, "epoll_create1");
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.epfd().flags()));
  return fd;
}

Status Finish(const image::FileEntry& entry, int fd, ProcessActor& process) {
  for (const image::EventpollTfdEntry& watch : entry.epfd().tfd()) {
    const int target = static_cast<int>(watch.tfd());
    RETURN_IF_ERROR(Annotate(process.EpollAdd(fd, target, watch.events(), watch.data()),
                             "watch descriptor " + std::to_string(target)));
  }
  return OkStatus();
}

}  // namespace

const FileKind kEpoll = {.name = "epoll",
                         .owns = Owns,
                         .dump = Dump,
                         .type = image::FD_EVENTPOLL,
                         .restore = Restore,
                         .finish = Finish};

}  // namespace stasis::engine
