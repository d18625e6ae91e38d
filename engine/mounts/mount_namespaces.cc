// Source  setns(2), mount_namespaces(7); mntns_install() in fs/namespace.c; tested on 6.18
// Rule    Whoever enters a mount namespace gets its root as root and working directory, and shares these with nobody
#include "engine/mounts/mount_namespaces.h"

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

Result<ino_t> InodeOf(int folder, const char* path) {
  struct stat st = {};
  if (::fstatat(folder, path, &st, 0) != 0) {
    return SyscallError(errno, std::string("stat /proc/PID/") + path);
  }
  return st.st_ino;
}

}  // namespace

Status MountNamespaces::Add(const RestoredProcess& root, const NamespaceMounts& mounts) {
  Namespace one;
  one.number = mounts.number;
  ASSIGN_OR_RETURN(one.fd, OpenAt(root.proc.get(), "ns/mnt", O_RDONLY));
  ASSIGN_OR_RETURN(one.root, OpenAt(root.proc.get(), "root", O_PATH | O_DIRECTORY));
  ASSIGN_OR_RETURN(one.inode, InodeOf(root.proc.get(), "ns/mnt"));
  for (const image::MntEntry& mount : mounts.mounts) one.mounts.insert(mount.mnt_id());
  all_.push_back(std::move(one));
  return OkStatus();
}

const MountNamespaces::Namespace* MountNamespaces::Find(std::uint32_t number) const {
  const auto found = std::ranges::find(all_, number, &Namespace::number);
  return found == all_.end() ? nullptr : &*found;
}

Status MountNamespaces::Enter(RestoredProcess& process, std::uint32_t number) const {
  if (empty()) return OkStatus();
  const Namespace* const wanted = Find(number);
  if (wanted == nullptr) {
    return InvalidArgument("there is no mount namespace " + std::to_string(number));
  }
  ASSIGN_OR_RETURN(const ino_t now, InodeOf(process.proc.get(), "ns/mnt"));
  if (now == wanted->inode) return OkStatus();
  ASSIGN_OR_RETURN(const int fd, SendInto(process, wanted->fd.get()));
  RETURN_IF_ERROR(
      process.remote->Call("setns into a mount namespace", SYS_setns, fd, CLONE_NEWNS).status());
  return process.remote->Call("close", SYS_close, fd).status();
}

std::uint32_t MountNamespaces::NumberOf(std::int32_t mnt_id) const {
  for (const Namespace& one : all_) {
    if (mnt_id >= 0 && one.mounts.contains(static_cast<std::uint32_t>(mnt_id))) return one.number;
  }
  return all_.empty() ? 0 : all_.front().number;
}

int MountNamespaces::RootOf(std::uint32_t number) const {
  const Namespace* const found = Find(number);
  return found == nullptr ? -1 : found->root.get();
}

}  // namespace stasis::engine
