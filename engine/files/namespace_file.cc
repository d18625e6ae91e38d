// Namespaces held open: /proc/PID/ns/NAME, behind links like "net:[4026531840]".
//
// State    its kind, which of the holder's own it is; no offset
// Image    FD_NS, with the number that the namespace has in the images
// Restore  the root of the tree opens its own of that kind: a restore makes no others
// Refused  namespaces that the tree does not live in; those opened by the path of a mount
// Source   namespaces(7), ioctl_ns(2), proc_pid_ns(5); tested on 6.18
#include <fcntl.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <string>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

namespace stasis::engine {
namespace {

constexpr std::uint64_t kNsfsMagic = 0x6e736673;

struct NamespaceName {
  int type;
  const char* name;
};
constexpr auto kNames = std::to_array<NamespaceName>({{CLONE_NEWNET, "net"},
                                                      {CLONE_NEWIPC, "ipc"},
                                                      {CLONE_NEWUTS, "uts"},
                                                      {CLONE_NEWNS, "mnt"},
                                                      {CLONE_NEWPID, "pid"},
                                                      {CLONE_NEWUSER, "user"},
                                                      {CLONE_NEWCGROUP, "cgroup"},
                                                      {CLONE_NEWTIME, "time"}});

Result<std::string> NameFor(std::uint32_t type) {
  for (const NamespaceName& known : kNames) {
    if (static_cast<std::uint32_t>(known.type) == type) return std::string(known.name);
  }
  return Unimplemented("a namespace of the unknown kind " + std::to_string(type));
}

bool Owns(const OpenFile& file) {
  return file.fs_magic == kNsfsMagic && !file.link.starts_with('/') && (file.flags & O_PATH) == 0;
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  const int type = ::ioctl(file.borrowed.get(), NS_GET_NSTYPE);
  if (type < 0) {
    return SyscallError(errno, "NS_GET_NSTYPE " + NameOf(file));
  }
  const auto number = static_cast<std::uint32_t>(type);
  ASSIGN_OR_RETURN(const std::string name, NameFor(number));
  const std::uint32_t id = context.NamespaceId(number, file.st.st_ino);
  if (id == 0) {
    return Unimplemented(NameOf(file) + ": a " + name +
                         " namespace that no process of the tree lives in, or not its root");
  }
  RETURN_IF_ERROR(DumpOwner(file, context).status());
  image::FileEntry entry = NewEntry(file, image::FD_NS);
  entry.mutable_nsf()->set_id(file.id);
  entry.mutable_nsf()->set_ns_id(id);
  entry.mutable_nsf()->set_ns_cflag(number);
  entry.mutable_nsf()->set_flags(file.flags);
  return entry;
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_nsf()) return DataLoss("no namespace in the entry");
  ASSIGN_OR_RETURN(const std::string name, NameFor(entry.nsf().ns_cflag()));
  const std::string path = "/proc/self/ns/" + name;
  ASSIGN_OR_RETURN(UniqueFd fd, context.actor().Open(path, O_RDONLY | O_NOCTTY | O_NONBLOCK, 0));
  if (::ioctl(fd.get(), NS_GET_NSTYPE) != static_cast<int>(entry.nsf().ns_cflag())) {
    return FailedPrecondition(path + " is no namespace here");
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.nsf().flags()));
  return fd;
}

}  // namespace

const FileKind kNamespaceFile = {
    .name = "namespace", .owns = Owns, .dump = Dump, .type = image::FD_NS, .restore = Restore};

}  // namespace stasis::engine
