// Source  setns(2), namespaces(7); tested on 6.18
// Rule    setns(2) into these moves the calling thread alone: threads that it makes later are where it is then
#include "engine/tasks/other_namespaces.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "engine/base/io.h"
#include "engine/tasks/process_tree.h"

namespace stasis::engine {
namespace {

std::string LinkOf(int kind) { return kind == CLONE_NEWNET ? "ns/net" : "ns/uts"; }

Result<ino_t> InodeOf(int proc, int kind) {
  struct stat st = {};
  if (::fstatat(proc, LinkOf(kind).c_str(), &st, 0) != 0) {
    return SyscallError(errno, "stat /proc/PID/" + LinkOf(kind));
  }
  return st.st_ino;
}

}  // namespace

Status OtherNamespaces::Add(int proc, int kind, std::uint32_t number) {
  Namespace one = {.kind = kind, .number = number, .fd = {}};
  ASSIGN_OR_RETURN(one.fd, OpenAt(proc, LinkOf(kind), O_RDONLY));
  ASSIGN_OR_RETURN(one.inode, InodeOf(proc, kind));
  all_.push_back(std::move(one));
  return OkStatus();
}

Status OtherNamespaces::Enter(RestoredProcess& process, int kind, std::uint32_t number) const {
  if (std::ranges::count(all_, kind, &Namespace::kind) < 2) return OkStatus();
  const auto wanted = std::ranges::find_if(all_, [&](const Namespace& one) {
    return one.kind == kind && (number == 0 || one.number == number);
  });
  if (wanted == all_.end()) {
    return InvalidArgument("the checkpoint has no namespace " + std::to_string(number));
  }
  ASSIGN_OR_RETURN(const ino_t now, InodeOf(process.proc.get(), kind));
  if (now == wanted->inode) return OkStatus();
  ASSIGN_OR_RETURN(const int fd, SendInto(process, wanted->fd.get()));
  RETURN_IF_ERROR(process.remote->Call("setns " + LinkOf(kind), SYS_setns, fd, kind).status());
  return process.remote->Call("close", SYS_close, fd).status();
}

Status OtherNamespaces::EnterOwn(RestoredProcess& process) const {
  RETURN_IF_ERROR(Enter(process, CLONE_NEWNET, process.image->ids.net_ns_id()));
  return Enter(process, CLONE_NEWUTS, process.image->ids.uts_ns_id());
}

}  // namespace stasis::engine
