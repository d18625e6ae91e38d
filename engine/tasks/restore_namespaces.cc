// Source  namespaces(7), setns(2), unshare(2), mount(2), proc_pid_mountinfo(5); tested on 6.18
// Rule    In the images a namespace that was the dumper's has the number of the inventory's root_ids
// Rule    A new mount namespace is a copy of the caller's. So a tree finds its mounts in one when they are there
//         already, or are made there. New ones of the network have a loopback device in them, which is down
// Not here namespaces of pids and users (whoever starts the root makes them), of cgroups and
//         time (restore_cgroups.cc, restore_clocks.cc)
#include "engine/tasks/restore_namespaces.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <string_view>
#include <tuple>

#include "engine/base/io.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mounts_here.h"
#include "engine/mounts/outside_mounts.h"
#include "engine/mounts/restore_mounts.h"
#include "engine/mounts/restore_root.h"
#include "engine/tasks/ipc_settings.h"
#include "engine/tasks/own_network.h"
#include "engine/tasks/process_tree.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80  // linux/sched.h
#endif

namespace stasis::engine {
namespace {

using Ids = image::TaskKobjIdsEntry;

struct Kind {
  std::string_view name;
  int flag;
  std::uint32_t (Ids::*number)() const;
  const char* holds;
};
// In the order in which they are entered: paths are looked up before the mounts change.
constexpr Kind kKinds[] = {
    {"net", CLONE_NEWNET, &Ids::net_ns_id, "network interfaces and connections"},
    {"uts", CLONE_NEWUTS, &Ids::uts_ns_id, "host name"},
    {"ipc", CLONE_NEWIPC, &Ids::ipc_ns_id, "System V objects and message queues"},
    {"time", CLONE_NEWTIME, nullptr, "clocks"},
    {"mnt", CLONE_NEWNS, &Ids::mnt_ns_id, "mounts"},
    {"user", CLONE_NEWUSER, &Ids::user_ns_id, "users and groups"},
};

// "uts:4711" and "uts:/run/netns/x" into their halves.
std::pair<std::string_view, std::string_view> Halves(std::string_view text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos) return {text, {}};
  return {text.substr(0, colon), text.substr(colon + 1)};
}

std::string PathOf(std::string_view kind, std::string_view where) {
  const bool is_pid = std::ranges::all_of(where, [](char c) { return c >= '0' && c <= '9'; });
  if (!is_pid) return std::string(where);
  return "/proc/" + std::string(where) + "/ns/" + std::string(kind);
}

Status Join(RestoredProcess& root, const Kind& kind, const std::string& path) {
  Result<UniqueFd> ns = OpenAt(AT_FDCWD, path, O_RDONLY);
  if (!ns.ok()) return Annotate(ns.status(), "--join-ns " + std::string(kind.name));
  ASSIGN_OR_RETURN(const int number, SendInto(root, ns->get()));
  const Status joined = root.remote->Call("setns", SYS_setns, number, kind.flag).status();
  RETURN_IF_ERROR(root.remote->Call("close", SYS_close, number).status());
  if (ErrnoOf(joined) != EINVAL) return Annotate(joined, "--join-ns " + path);
  return InvalidArgument(path + " is no " + std::string(kind.name) +
                         " namespace; give a PID or /proc/PID/ns/" + std::string(kind.name));
}

Result<ino_t> InodeOf(int proc, std::string_view kind) {
  const std::string link = "ns/" + std::string(kind);
  struct stat st = {};
  if (::fstatat(proc, link.c_str(), &st, 0) != 0) {
    return SyscallError(errno, "stat /proc/PID/" + link);
  }
  return st.st_ino;
}

// Whether the tree had one to itself, and `root` is in ours.
Result<bool> IsMissing(const RestoredProcess& root, const CheckpointImages& images,
                       const Kind& kind) {
  if (kind.number == nullptr) return false;
  const std::uint32_t before = (images.processes.front().ids.*kind.number)();
  const std::uint32_t dumper = (images.inventory.root_ids().*kind.number)();
  if (before == 0 || dumper == 0 || before == dumper) return false;
  ASSIGN_OR_RETURN(const UniqueFd self, OpenAt(AT_FDCWD, "/proc/thread-self", O_DIRECTORY));
  ASSIGN_OR_RETURN(const ino_t here, InodeOf(root.proc.get(), kind.name));
  ASSIGN_OR_RETURN(const ino_t ours, InodeOf(self.get(), kind.name));
  return here == ours;
}

Status Unshare(RestoredProcess& root, const Kind& kind) {
  return root.remote->Call("unshare " + std::string(kind.name), SYS_unshare, kind.flag).status();
}

Status MakeUts(RestoredProcess& root, const Kind& kind, std::uint32_t number,
               const ImageSource& source) {
  ASSIGN_OR_RETURN(const auto names,
                   ReadOne<image::UtsnsEntry>(source, ImageName("utsns", number), "utsns"));
  RETURN_IF_ERROR(Unshare(root, kind));
  RemoteSyscalls& remote = *root.remote;
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t node, remote.Put(names.nodename()));
  ASSIGN_OR_RETURN(const std::uint64_t domain, remote.Put(names.domainname()));
  RETURN_IF_ERROR(
      remote.Call("sethostname", SYS_sethostname, node, names.nodename().size()).status());
  return remote.Call("setdomainname", SYS_setdomainname, domain, names.domainname().size())
      .status();
}

Status Propagate(RestoredProcess& root, unsigned long type) {
  RemoteSyscalls& remote = *root.remote;
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t path, remote.Put(std::string_view("/")));
  return remote.Call("mount --make-r…", SYS_mount, 0, path, 0, MS_REC | type, 0).status();
}

// What the tree had to itself, or got from the namespace that it was copied from, it does again.
Status SetPropagation(RestoredProcess& root, std::span<const image::MntEntry> mounts) {
  const auto any = [&](bool (image::MntEntry::*has)() const) {
    return std::ranges::any_of(mounts, [has](const auto& mount) { return (mount.*has)(); });
  };
  if (any(&image::MntEntry::has_shared_id)) return OkStatus();
  return Propagate(root, any(&image::MntEntry::has_master_id) ? MS_SLAVE : MS_PRIVATE);
}

Status InOtherMounts() {
  return Unimplemented(
      "processes of the tree are in other mount namespaces than its root, which can only be made "
      "again where that "
      "has one with a root of its own (--root DIR)");
}

// Whether what is in it is that of the namespaces of whoever mounts it.
bool ShowsNamespace(const image::MntEntry& mount) {
  const std::string type = FsTypeName(mount);
  return type == "proc" || type == "sysfs" || type == "mqueue";
}

// `before` is that of the root.
Status MakeRoot(RestoredProcess& root, const Kind& kind, std::vector<image::MntEntry> before,
                const CheckpointImages& images, const ImageSource& source, const Options& options,
                const FillTmpfs& fill, LaterInNamespaces& later) {
  std::vector<NamespaceMounts> all;
  all.push_back({images.processes.front().ids.mnt_ns_id(), std::move(before)});
  for (const std::uint32_t number : images.OtherMountNamespaces()) {
    ASSIGN_OR_RETURN(auto mounts, ReadRecords<image::MntEntry>(
                                      source, ImageName("mountpoints", number), "mountpoints"));
    all.push_back({number, std::move(mounts)});
  }
  ASSIGN_OR_RETURN(const ExternalMounts external, ParseExternalMounts(options.external));
  RETURN_IF_ERROR(Unshare(root, kind));
  // Nothing of it comes to the machine. What is mounted there comes to those that had it so.
  RETURN_IF_ERROR(Propagate(root, MS_SLAVE));
  return RestoreRootMounts(root, all, options.root, external, fill, later.pending_mounts,
                           later.mounts);
}

Status MakeMounts(RestoredProcess& root, const Kind& kind, const CheckpointImages& images,
                  const ImageSource& source, const Options& options, const FillTmpfs& fill,
                  LaterInNamespaces& later, std::vector<std::string>& notes) {
  const std::uint32_t number = images.processes.front().ids.mnt_ns_id();
  ASSIGN_OR_RETURN(auto before, ReadRecords<image::MntEntry>(
                                    source, ImageName("mountpoints", number), "mountpoints"));
  if (options.root != "/") {
    return MakeRoot(root, kind, std::move(before), images, source, options, fill, later);
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(root.proc.get(), "mountinfo"));
  ASSIGN_OR_RETURN(std::multiset<MountKey> here, MountsIn(text));
  const auto is_other_root = [&](const image::MntEntry& mount) {
    return mount.mountpoint() == "/" && !mount.made_inside() && !here.contains(KeyOf(mount));
  };
  if (std::ranges::any_of(before, is_other_root)) {
    return FailedPrecondition(
        "the tree had a mount namespace with a root of its own: name the directory that is to be "
        "it: --root DIR");
  }
  if (!images.OtherMountNamespaces().empty()) return InOtherMounts();
  // Of two in one place the one that was there before is what is here.
  std::ranges::stable_partition(before, [](const auto& mount) { return !mount.made_inside(); });
  for (image::MntEntry& mount : before) {
    const auto found = here.find(KeyOf(mount));
    if (mount.made_inside() && (found == here.end() || ShowsNamespace(mount))) continue;
    if (found == here.end()) {
      return FailedPrecondition("the tree had mounts of its own, and " + mount.mountpoint() + " (" +
                                mount.source() +
                                ") is not mounted here: make them in a mount namespace (unshare "
                                "--mount) and name that: --join-ns mnt:PID");
    }
    mount.clear_made_inside();
    here.erase(found);
  }
  if (!here.empty()) {
    notes.push_back(std::to_string(here.size()) +
                    " mounts are in the tree's mount namespace that were not before, such as " +
                    std::get<0>(*here.begin()));
  }
  RETURN_IF_ERROR(Unshare(root, kind));
  RETURN_IF_ERROR(SetPropagation(root, before));
  return RestoreMounts(root, before, fill, later.pending_mounts, notes);
}

// An empty one, to be filled once all are there.
Status MakeNetwork(RestoredProcess& root, const Kind& kind, std::uint32_t number,
                   const ImageSource& source, LaterInNamespaces& later) {
  ASSIGN_OR_RETURN(const bool is_known, CanMakeNetwork(number, source));
  if (!is_known) {
    return FailedPrecondition(
        "the tree had a network namespace of its own, whose interfaces or firewall are not in a "
        "checkpoint: "
        "make one with them (ip netns add NAME) and name it: --join-ns net:/run/netns/NAME; or "
        "say that it is to be in that of this restore: --join-ns net:/proc/self/ns/net");
  }
  RETURN_IF_ERROR(Unshare(root, kind));
  ASSIGN_OR_RETURN(UniqueFd made, OpenAt(root.proc.get(), "ns/net", O_RDONLY));
  later.networks.push_back({.number = number, .ns = std::move(made)});
  return OkStatus();
}

// What was in it comes with the rest of the checkpoint.
Status MakeIpc(RestoredProcess& root, const Kind& kind, const CheckpointImages& images,
               const ImageSource& source, LaterInNamespaces& later) {
  const std::uint32_t number = images.processes.front().ids.ipc_ns_id();
  ASSIGN_OR_RETURN(const auto settings, ReadRecords<image::IpcVarEntry>(
                                            source, ImageName("ipcns-var", number), "ipcns-var"));
  RETURN_IF_ERROR(Unshare(root, kind));
  if (settings.empty()) return OkStatus();
  later.ipc_settings = settings.front();
  return RaiseIpcLimits(root.pid, settings.front());
}

Status Make(RestoredProcess& root, const Kind& kind, const CheckpointImages& images,
            const ImageSource& source, const Options& options, const FillTmpfs& fill,
            LaterInNamespaces& later, std::vector<std::string>& notes) {
  switch (kind.flag) {
    case CLONE_NEWUTS:
      return MakeUts(root, kind, images.processes.front().ids.uts_ns_id(), source);
    case CLONE_NEWIPC:
      return MakeIpc(root, kind, images, source, later);
    case CLONE_NEWNS:
      return MakeMounts(root, kind, images, source, options, fill, later, notes);
    case CLONE_NEWUSER:
      return Internal("the root of the tree was started without its user namespace");
    default:
      return MakeNetwork(root, kind, images.processes.front().ids.net_ns_id(), source, later);
  }
}

// Those of `kind` that processes are in and the root is not.
Status MakeOthers(RestoredProcess& root, const Kind& kind, const CheckpointImages& images,
                  const ImageSource& source, const Options& options, LaterInNamespaces& later) {
  if (kind.flag != CLONE_NEWNET && kind.flag != CLONE_NEWUTS) return OkStatus();
  const std::vector<std::uint32_t> numbers = images.OtherNamespaces(kind.number);
  if (numbers.empty()) return OkStatus();
  if (!options.own_namespaces) {
    return Unimplemented("processes of the tree are in other " + std::string(kind.name) +
                         " namespaces than its root, which a container cannot make again");
  }
  OtherNamespaces& others = later.others;
  const std::uint32_t of_root = (images.processes.front().ids.*kind.number)();
  RETURN_IF_ERROR(others.Add(root.proc.get(), kind.flag, of_root));
  for (const std::uint32_t number : numbers) {
    if (number == (images.inventory.root_ids().*kind.number)()) {
      ASSIGN_OR_RETURN(const UniqueFd self, OpenAt(AT_FDCWD, "/proc/thread-self", O_DIRECTORY));
      RETURN_IF_ERROR(others.Add(self.get(), kind.flag, number));
      continue;
    }
    RETURN_IF_ERROR(kind.flag == CLONE_NEWUTS ? MakeUts(root, kind, number, source)
                                              : MakeNetwork(root, kind, number, source, later));
    RETURN_IF_ERROR(others.Add(root.proc.get(), kind.flag, number));
  }
  return others.Enter(root, kind.flag, of_root);
}

Status EnterOrMake(RestoredProcess& root, const Kind& kind, const CheckpointImages& images,
                   const ImageSource& source, const Options& options, const FillTmpfs& fill,
                   LaterInNamespaces& later, std::vector<std::string>& notes) {
  const auto joined = std::ranges::find(options.join_ns, kind.name,
                                        [](const auto& text) { return Halves(text).first; });
  const bool in_others = kind.flag == CLONE_NEWNS && !images.OtherMountNamespaces().empty();
  if (joined != options.join_ns.end()) {
    if (in_others) return InOtherMounts();
    return Join(root, kind, PathOf(kind.name, Halves(*joined).second));
  }
  ASSIGN_OR_RETURN(const bool is_missing, IsMissing(root, images, kind));
  if (in_others && (!is_missing || !options.own_namespaces)) return InOtherMounts();
  if (!is_missing) return OkStatus();
  if (options.own_namespaces) {
    return Make(root, kind, images, source, options, fill, later, notes);
  }
  notes.push_back("the tree had a " + std::string(kind.name) +
                  " namespace of its own, and is in that of its runtime now: the " + kind.holds +
                  " are those of there");
  return OkStatus();
}

}  // namespace

Status CheckJoinNs(const std::string& text) {
  const auto [kind, where] = Halves(text);
  if (kind == "pid" || kind == "user" || kind == "cgroup") {
    return InvalidArgument("a namespace of kind " + std::string(kind) +
                           " cannot be joined; start stasis in it (nsenter(1))");
  }
  if (std::ranges::find(kKinds, kind, &Kind::name) == std::end(kKinds) || where.empty()) {
    return InvalidArgument("\"" + text + "\" is not KIND:PID or KIND:PATH, KIND one of net, uts, " +
                           "ipc, time, mnt");
  }
  return OkStatus();
}

Status RestoreNamespaces(RestoredProcess& root, const CheckpointImages& images,
                         const ImageSource& source, const Options& options, const FillTmpfs& fill,
                         LaterInNamespaces& later, std::vector<std::string>& notes) {
  for (const std::string& text : options.join_ns) RETURN_IF_ERROR(CheckJoinNs(text));
  for (const Kind& kind : kKinds) {
    RETURN_IF_ERROR(EnterOrMake(root, kind, images, source, options, fill, later, notes));
    RETURN_IF_ERROR(MakeOthers(root, kind, images, source, options, later));
    if (kind.flag != CLONE_NEWNET) continue;
    RETURN_IF_ERROR(
        MakeOwnNetworks(later.networks, source, options.external, later.firewalls, notes));
  }
  return OkStatus();
}

}  // namespace stasis::engine
