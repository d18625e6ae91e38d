// Source  namespaces(7), time_namespaces(7), proc_pid_mountinfo(5); tested on 6.18
// Rule    Two tasks are in one namespace when the links in /proc/PID/ns lead to one inode.
// Rule    The threads of a process are in one pid, user and time namespace (unshare(2), setns(2): these need
//         a process of one thread), and those that share their directories in one mount namespace
//         (KCMP_FS; mntns_install() in fs/namespace.c). The others, and those of its children, are a
//         thread's own.
// Rule    A namespace of the tree that is ours has the number that it has in the inventory's
//         root_ids: a restore makes no new one for it. Numbers count from 1 over all kinds.
#include "engine/tasks/dump_namespaces.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iterator>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/mounts/mount_entry.h"
#include "engine/mounts/mount_options.h"
#include "engine/mounts/mount_plan.h"
#include "engine/proc/mountinfo.h"
#include "engine/proc/text.h"
#include "engine/tasks/dump_ipc.h"
#include "engine/tasks/dump_tree.h"
#include "engine/tasks/make_devices.h"
#include "engine/tasks/user_namespace.h"
#include "engine/tracee/fd_channel.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80  // linux/sched.h
#endif

namespace stasis::engine {
namespace {

using Ids = image::TaskKobjIdsEntry;

struct Kind {
  const char* name;
  std::uint32_t type;
  void (Ids::*set)(std::uint32_t);
};
// In the order in which CRIU numbers its own.
constexpr std::array<Kind, 8> kKindTable = {{
    {"pid", CLONE_NEWPID, &Ids::set_pid_ns_id},
    {"net", CLONE_NEWNET, &Ids::set_net_ns_id},
    {"ipc", CLONE_NEWIPC, &Ids::set_ipc_ns_id},
    {"uts", CLONE_NEWUTS, &Ids::set_uts_ns_id},
    {"time", CLONE_NEWTIME, &Ids::set_time_ns_id},
    {"mnt", CLONE_NEWNS, &Ids::set_mnt_ns_id},
    {"user", CLONE_NEWUSER, &Ids::set_user_ns_id},
    {"cgroup", CLONE_NEWCGROUP, &Ids::set_cgroup_ns_id},
}};
enum KindIndex : std::size_t { kPid, kNet, kIpc, kUts, kTime, kMnt, kUser, kCgroup };

// runc's word for a network namespace that is given at restore.
constexpr char kExternalNetwork[] = "extRootNetNS";

std::uint32_t NumberOfOurs(std::size_t kind) { return static_cast<std::uint32_t>(kind) + 1; }

// 0 where the kernel has no such namespace. The link's text is to be had for half of what stat(2) costs.
Result<std::uint64_t> InodeOf(int ns_fd, const char* name) {
  std::array<char, 64> link;  // "net:[4026531840]"
  const ssize_t length = ::readlinkat(ns_fd, name, link.data(), link.size());
  if (length < 0) {
    const int error = errno;
    if (error == ENOENT) return std::uint64_t{0};
    // Also of a task that has ended just then: proc_ns_readlink() in fs/proc/namespaces.c.
    if (error == EACCES && ::faccessat(ns_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0) {
      return NotFound("the task is gone");
    }
    return SyscallError(error, std::string("read the link /proc/PID/ns/") + name);
  }
  std::string_view text(link.data(), static_cast<std::size_t>(length));
  (void)text::Cut(text, '[');
  return text::Number<std::uint64_t>(text::Cut(text, ']'));
}

Result<UniqueFd> OpenNamespaces(int task_fd) { return OpenAt(task_fd, "ns", O_PATH | O_DIRECTORY); }

void SetTime(std::chrono::nanoseconds time, image::Timespec& entry) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  entry.set_tv_sec(static_cast<std::uint64_t>(time.count() / kSecond));
  entry.set_tv_nsec(static_cast<std::uint64_t>(time.count() % kSecond));
}

}  // namespace

Result<NamespaceDumper::Inodes> NamespaceDumper::ReadInodes(int task_fd) {
  ASSIGN_OR_RETURN(const UniqueFd ns, OpenNamespaces(task_fd));
  Inodes inodes = {};
  for (std::size_t i = 0; i < kKinds; ++i) {
    ASSIGN_OR_RETURN(inodes[i], InodeOf(ns.get(), kKindTable[i].name));
  }
  return inodes;
}

Result<NamespaceDumper> NamespaceDumper::Create(const FrozenProcess& root) {
  NamespaceDumper dumper;
  ASSIGN_OR_RETURN(const UniqueFd self, OpenAt(AT_FDCWD, "/proc/thread-self", O_DIRECTORY));
  ASSIGN_OR_RETURN(dumper.ours_, ReadInodes(self.get()));
  ASSIGN_OR_RETURN(dumper.tree_, ReadInodes(root.proc.get()));
  ASSIGN_OR_RETURN(dumper.ids_, UserIds::Of(root.proc.get()));
  std::uint32_t next = NumberOfOurs(kKinds);
  for (std::size_t i = 0; i < kKinds; ++i) {
    dumper.tree_numbers_[i] = dumper.tree_[i] == dumper.ours_[i] ? NumberOfOurs(i) : next++;
  }
  return dumper;
}

Status NamespaceDumper::CheckThread(int ns_fd, const FrozenProcess& process, bool is_leader) const {
  for (std::size_t i = 0; i < kKinds; ++i) {
    const bool of_process = i == kPid || i == kUser || i == kTime;
    if (i == kMnt || (of_process && !is_leader)) continue;
    ASSIGN_OR_RETURN(const std::uint64_t inode, InodeOf(ns_fd, kKindTable[i].name));
    if (inode == tree_[i]) continue;
    if (i == kNet || i == kUts) {
      const std::string link = std::string("ns/") + kKindTable[i].name;
      ASSIGN_OR_RETURN(const std::uint64_t of_leader, InodeOf(process.proc.get(), link.c_str()));
      if (inode == of_leader) continue;
      return Unimplemented(std::string("is in another ") + kKindTable[i].name +
                           " namespace than other threads of its process");
    }
    return Unimplemented(std::string("is in another ") + kKindTable[i].name +
                         " namespace than the root of its tree");
  }
  ASSIGN_OR_RETURN(const std::uint64_t for_pids, InodeOf(ns_fd, "pid_for_children"));
  ASSIGN_OR_RETURN(const std::uint64_t for_time, InodeOf(ns_fd, "time_for_children"));
  if (for_pids != tree_[kPid] || for_time != tree_[kTime]) {
    return Unimplemented("would have its children in another namespace (unshare(2))");
  }
  return OkStatus();
}

Status NamespaceDumper::CheckSame(const FrozenProcess& process, const FrozenThread& thread) const {
  UniqueFd opened;
  ASSIGN_OR_RETURN(const int ns, thread.files.Namespaces(opened));
  return CheckThread(ns, process, thread.tid() == process.pid);
}

Status NamespaceDumper::CheckSame(const FrozenProcess& process) const {
  for (const FrozenThread& thread : process.threads) {
    RETURN_IF_ERROR(Annotate(CheckSame(process, thread), "tid " + std::to_string(thread.ns_tid())));
  }
  return OkStatus();
}

void NamespaceDumper::NumberTree(Ids& ids) const {
  for (std::size_t i = 0; i < kKinds; ++i) (ids.*kKindTable[i].set)(tree_numbers_[i]);
}

void NamespaceDumper::NumberOurs(Ids& ids) const {
  for (std::size_t i = 0; i < kKinds; ++i) (ids.*kKindTable[i].set)(NumberOfOurs(i));
}

void NamespaceDumper::NumberProcess(pid_t pid, Ids& ids) const {
  NumberTree(ids);
  const auto found = elsewhere_.find(pid);
  if (found != elsewhere_.end()) ids.set_mnt_ns_id(found->second);
  for (const std::size_t kind : {kNet, kUts}) {
    const auto other = numbers_.find({kind, pid});
    if (other != numbers_.end()) (ids.*kKindTable[kind].set)(other->second);
  }
}

std::uint32_t NamespaceDumper::NumberOf(std::uint32_t type, std::uint64_t inode) const {
  const auto kind = std::ranges::find(kKindTable, type, &Kind::type);
  if (kind == kKindTable.end()) return 0;
  const auto index = static_cast<std::size_t>(kind - kKindTable.begin());
  if (inode == tree_[index]) return tree_numbers_[index];
  const auto other = std::ranges::find_if(
      others_, [&](const Other& one) { return one.kind == index && one.inode == inode; });
  return other == others_.end() ? 0 : other->number;
}

bool NamespaceDumper::IsOfRoot(std::uint32_t type, std::uint64_t inode) const {
  const auto kind = std::ranges::find(kKindTable, type, &Kind::type);
  return kind != kKindTable.end() &&
         tree_[static_cast<std::size_t>(kind - kKindTable.begin())] == inode;
}

// One of ours has the number of ours, for the restore to give it its own.
Status NamespaceDumper::FindOther(const FrozenProcess& process, std::size_t kind,
                                  std::uint32_t& next) {
  const std::string link = std::string("ns/") + kKindTable[kind].name;
  const Result<std::uint64_t> inode = InodeOf(process.proc.get(), link.c_str());
  if (!inode.ok()) {
    return inode.status().code() == StatusCode::kNotFound ? OkStatus() : inode.status();
  }
  if (*inode == tree_[kind] || *inode == 0) return OkStatus();
  auto known = std::ranges::find_if(
      others_, [&](const Other& one) { return one.kind == kind && one.inode == *inode; });
  if (known == others_.end()) {
    const std::uint32_t number = *inode == ours_[kind] ? NumberOfOurs(kind) : next++;
    others_.push_back({.kind = kind, .inode = *inode, .number = number, .process = &process});
    known = std::prev(others_.end());
  }
  numbers_[{kind, process.pid}] = known->number;
  return OkStatus();
}

Status NamespaceDumper::FindOthers(std::span<const FrozenProcess> processes) {
  std::uint32_t next = NumberOfOurs(kKinds) + kKinds;  // above all of tree_numbers_
  for (const FrozenProcess& process : processes) {
    if (process.zombie) continue;
    for (const std::size_t kind : {kNet, kUts}) {
      RETURN_IF_ERROR(FindOther(process, kind, next));
    }
    const Result<std::uint64_t> inode = InodeOf(process.proc.get(), "ns/mnt");
    if (!inode.ok()) {
      if (inode.status().code() == StatusCode::kNotFound) continue;  // it ends
      return inode.status();
    }
    if (*inode == tree_[kMnt] || *inode == 0) continue;
    auto known = std::ranges::find(other_mounts_, *inode, &OtherMounts::inode);
    if (known == other_mounts_.end()) {
      other_mounts_.push_back({.inode = *inode, .number = next++, .mounts = {}});
      known = std::prev(other_mounts_.end());
    }
    elsewhere_[process.pid] = known->number;
    // Rule: what /proc shows of mounts begins at the root directory of the process.
    const Result<std::string> root = ReadLinkAt(process.proc.get(), "root");
    if (known->process == nullptr || (root.ok() && *root == "/")) known->process = &process;
  }
  return OkStatus();
}

bool NamespaceDumper::has_own_uts() const { return tree_[kUts] != ours_[kUts]; }
bool NamespaceDumper::has_own_ipc() const { return tree_[kIpc] != ours_[kIpc]; }
bool NamespaceDumper::has_own_net() const { return tree_[kNet] != ours_[kNet]; }
bool NamespaceDumper::has_own_pid() const { return tree_[kPid] != ours_[kPid]; }
std::uint64_t NamespaceDumper::pid_namespace() const { return tree_[kPid]; }

namespace {

// What was removed and is mounted is made again, where it is empty: a removed folder always is. `entries` are those of
// `mounts`.
Status ReadRemoved(const FrozenProcess& process, const UserIds& ids, std::span<const Mount> mounts,
                   std::span<image::MntEntry> entries) {
  for (std::size_t i = 0; i < mounts.size(); ++i) {
    struct stat st = {};
    const std::string place = "root" + mounts[i].mountpoint;
    if (!entries[i].deleted() || ::fstatat(process.proc.get(), place.c_str(), &st, 0) != 0)
      continue;
    ids.ShowInside(st);
    const bool is_empty = S_ISDIR(st.st_mode) || (S_ISREG(st.st_mode) && st.st_size == 0);
    if (!is_empty || st.st_uid != 0 || st.st_gid != 0) {
      return Unimplemented(Name(process) + ": what is mounted at " + mounts[i].mountpoint +
                           " was removed, and is no empty file or folder of root's");
    }
    entries[i].set_removed_mode(st.st_mode);
  }
  return OkStatus();
}

}  // namespace

Status NamespaceDumper::ReadMounts(const FrozenProcess& root, const CompareMounts& compare,
                                   const OutsideMounts& outside) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(root.proc.get(), "mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<Mount> mounts, ParseMountinfo(text));
  MountChanges changes;
  if (compare) {
    ASSIGN_OR_RETURN(changes, compare(mounts));
  }
  if (!other_mounts_.empty()) {
    RETURN_IF_ERROR(ReadOtherMounts(mounts, compare, outside, changes));
  }
  for (const Mount& mount : mounts) {
    image::MntEntry& entry = mounts_.emplace_back(ToMountEntry(mount, outside, changes));
    if (entry.made_inside()) ShowOptionsInside(ids_, entry);
    if (mount.mountpoint != "/") continue;
    for (const std::string& place : std::exchange(changes.unmounted, {})) {
      entry.add_unmounted(place);
    }
  }
  if (!changes.unmounted.empty()) {
    return Unimplemented("mounts were changed below the first process's root directory only");
  }
  RETURN_IF_ERROR(ReadAutofsFolders(root.proc.get(), mounts_));
  return changes.own_root ? ReadRemoved(root, ids_, mounts, mounts_) : PlanMounts(mounts_).status();
}

namespace {

Status InOtherMounts(const FrozenProcess& process, const std::string& why) {
  return Unimplemented(Name(process) + " is in another mnt namespace than the root of its tree" +
                       why);
}

}  // namespace

// They can be made again where that of the root is made with all its mounts.
Status NamespaceDumper::ReadOtherMounts(const std::vector<Mount>& of_root,
                                        const CompareMounts& compare, const OutsideMounts& outside,
                                        MountChanges& changes) {
  if (!changes.own_root) return InOtherMounts(*other_mounts_.front().process, "");
  std::vector<Mount> all = of_root;
  std::vector<std::vector<Mount>> each;
  for (const OtherMounts& other : other_mounts_) {
    ASSIGN_OR_RETURN(const std::string root, ReadLinkAt(other.process->proc.get(), "root"));
    if (root != "/") {
      return InOtherMounts(*other.process, ", and has changed its root directory to " + root);
    }
    ASSIGN_OR_RETURN(const std::string text, ReadFileAt(other.process->proc.get(), "mountinfo"));
    ASSIGN_OR_RETURN(each.emplace_back(), ParseMountinfo(text));
    all.insert(all.end(), each.back().begin(), each.back().end());
  }
  ASSIGN_OR_RETURN(changes, compare(all));
  if (!changes.own_root) {
    return InOtherMounts(*other_mounts_.front().process,
                         ", which cannot be made again: " + changes.obstacle);
  }
  for (std::size_t i = 0; i < each.size(); ++i) {
    for (const Mount& mount : each[i]) {
      image::MntEntry& entry =
          other_mounts_[i].mounts.emplace_back(ToMountEntry(mount, outside, changes));
      if (entry.made_inside()) ShowOptionsInside(ids_, entry);
    }
    RETURN_IF_ERROR(ReadRemoved(*other_mounts_[i].process, ids_, each[i], other_mounts_[i].mounts));
    RETURN_IF_ERROR(
        ReadAutofsFolders(other_mounts_[i].process->proc.get(), other_mounts_[i].mounts));
  }
  return OkStatus();
}

void NamespaceDumper::GiveTerminals(const IsOwnTerminal& is_own) {
  engine::GiveTerminals(mounts_, is_own);
  for (OtherMounts& other : other_mounts_) engine::GiveTerminals(other.mounts, is_own);
}

std::vector<const image::MntEntry*> NamespaceDumper::mounts() const {
  std::vector<const image::MntEntry*> all;
  for (const image::MntEntry& mount : mounts_) all.push_back(&mount);
  for (const OtherMounts& other : other_mounts_) {
    for (const image::MntEntry& mount : other.mounts) all.push_back(&mount);
  }
  return all;
}

namespace {

Result<UtsNames> ReadNames(const FrozenProcess& process) {
  ASSIGN_OR_RETURN(const UniqueFd ns, OpenAt(process.proc.get(), "ns/uts", O_RDONLY));
  utsname names = {};
  RETURN_IF_ERROR(InNamespace(ns.get(), CLONE_NEWUTS, [&]() -> Status {
    return ::uname(&names) == 0 ? OkStatus() : SyscallError(errno, "uname");
  }));
  return UtsNames{names.nodename, names.domainname};
}

}  // namespace

Status NamespaceDumper::ReadOthers(bool makes) {
  for (Other& other : others_) {
    if (!makes) return InOther(other);
    if (other.inode == ours_[other.kind] || other.kind != kUts) continue;
    ASSIGN_OR_RETURN(other.names, ReadNames(*other.process));
  }
  return OkStatus();
}

Status NamespaceDumper::InOther(const Other& other) {
  return Unimplemented(Name(*other.process) + " is in another " + kKindTable[other.kind].name +
                       " namespace than the root of its tree");
}

namespace {

// A descriptor for what a process of the tree has open of a device of /dev/net/tun. Rule: "iff:" in fdinfo names it
// (tun_chr_show_fdinfo() in drivers/net/tun.c), in whichever namespace.
Result<UniqueFd> FindTunOf(std::span<const FrozenProcess> processes, const std::string& name,
                           std::uint64_t network) {
  for (const FrozenProcess& process : processes) {
    if (process.zombie) continue;
    std::error_code error;
    const std::string folder = "/proc/" + std::to_string(process.pid) + "/fd";
    for (const auto& at : std::filesystem::directory_iterator(folder, error)) {
      const std::string number = at.path().filename();
      const Result<std::string> info = ReadFileAt(process.proc.get(), "fdinfo/" + number);
      if (!info.ok() || text::Field(*info, "iff").value_or("") != name) continue;
      const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0)));
      ASSIGN_OR_RETURN(UniqueFd fd, GetFd(pidfd.get(), text::Number<int>(number).value_or(-1)));
      const UniqueFd ns(::ioctl(fd.get(), TUNGETDEVNETNS));
      struct stat st = {};
      if (ns && ::fstat(ns.get(), &st) == 0 && st.st_ino == network) return fd;
    }
  }
  return NotFound("nobody has " + name + " open");
}

}  // namespace

Status NamespaceDumper::ReadNetworks(std::span<const FrozenProcess> processes) {
  network_fds_.clear();
  to_try_.clear();
  std::vector<NumberedNetwork> all;
  const auto add = [&](const FrozenProcess& process, std::uint32_t number) -> Status {
    ASSIGN_OR_RETURN(UniqueFd ns, OpenAt(process.proc.get(), "ns/net", O_RDONLY));
    all.push_back({number, ns.get()});
    network_fds_.push_back(std::move(ns));
    return OkStatus();
  };
  if (has_own_net()) RETURN_IF_ERROR(add(processes.front(), tree_numbers_[kNet]));
  for (const Other& other : others_) {
    if (other.kind != kNet || other.inode == ours_[kNet]) continue;
    RETURN_IF_ERROR(add(*other.process, other.number));
  }
  const auto read = [&](std::uint32_t number, std::uint64_t inode) {
    const auto where = std::ranges::find(all, number, &NumberedNetwork::number);
    return ReadOwnNetwork(
        *where, all, [&](const std::string& name) { return FindTunOf(processes, name, inode); });
  };
  network_obstacle_.clear();
  if (has_own_net()) {
    Result<OwnNetwork> network = read(tree_numbers_[kNet], tree_[kNet]);
    if (network.ok()) {
      network_ = *std::move(network);
      to_try_.push_back(all.front());
    } else {
      network_obstacle_ = Message(network.status());
    }
  }
  for (Other& other : others_) {
    if (other.kind != kNet || other.inode == ours_[kNet]) continue;
    Result<OwnNetwork> network = read(other.number, other.inode);
    if (!network.ok()) return Annotate(network.status(), Message(InOther(other)));
    other.network = *std::move(network);
    to_try_.push_back(*std::ranges::find(all, other.number, &NumberedNetwork::number));
  }
  return OkStatus();
}

Status NamespaceDumper::TryNetworks() {
  std::vector<NetworkToTry> networks;
  const Other* first = nullptr;
  for (const NumberedNetwork& where : to_try_) {
    const auto other = std::ranges::find_if(
        others_, [&](const Other& one) { return one.kind == kNet && one.number == where.number; });
    if (other != others_.end() && first == nullptr) first = &*other;
    networks.push_back({where, other != others_.end() ? &other->network : &network_});
  }
  const Status tried = TryOwnNetworks(networks);
  if (tried.ok()) return tried;
  if (first != nullptr) return Annotate(tried, Message(InOther(*first)));
  network_ = {};
  network_obstacle_ = Message(tried);
  return OkStatus();
}

std::vector<std::string> NamespaceDumper::NeedsOfNetworks() const {
  std::vector<std::string> needs;
  if (!network_obstacle_.empty()) {
    needs.push_back("it has a network namespace of its own, which is not in a checkpoint (" +
                    network_obstacle_ +
                    "): `stasis restore` is to be given one (--join-ns net:PID or "
                    "net:/run/netns/NAME), else it refuses");
  }
  const auto add = [&](const OwnNetwork& network) {
    for (const std::string& need : NeedsOfDevices(network.devices)) needs.push_back(need);
  };
  add(network_);
  for (const Other& other : others_) add(other.network);
  return needs;
}

Status NamespaceDumper::Read(std::span<const FrozenProcess> processes, const CompareMounts& compare,
                             const OutsideMounts& outside, bool makes) {
  const FrozenProcess& root = processes.front();
  if (tree_[kMnt] == ours_[kMnt] && !other_mounts_.empty()) {
    return InOtherMounts(*other_mounts_.front().process, "");
  }
  if (tree_[kMnt] != ours_[kMnt]) RETURN_IF_ERROR(ReadMounts(root, compare, outside));
  if (tree_[kIpc] != ours_[kIpc]) {
    ASSIGN_OR_RETURN(ipc_, ReadIpc(root.proc.get()));
  }
  if (makes && !ids_.are_ours()) {
    RETURN_IF_ERROR(Annotate(CheckUserNamespace(ids_), Name(root)));
  }
  RETURN_IF_ERROR(ReadOthers(makes));
  if (makes) RETURN_IF_ERROR(ReadNetworks(processes));
  ASSIGN_OR_RETURN(clocks_, ReadClocks(root.proc.get()));
  return OkStatus();
}

namespace {

Status PutNetwork(const OwnNetwork& network, std::uint32_t number, ImageSink& sink) {
  RETURN_IF_ERROR(PutOne(sink, ImageName("netns", number), "netns", network.entry));
  const bool is_made = network.entry.has_stasis_loopback_up();
  return is_made ? WriteOwnNetwork(network, number, sink) : OkStatus();
}

Status PutNames(const UtsNames& names, std::uint32_t number, ImageSink& sink) {
  image::UtsnsEntry entry;
  entry.set_nodename(names.node);
  entry.set_domainname(names.domain);
  return PutOne(sink, ImageName("utsns", number), "utsns", entry);
}

Status PutMounts(std::span<const image::MntEntry> mounts, std::uint32_t number, ImageSink& sink) {
  ImageFileBuilder file("mountpoints");
  // Children come first in CRIU's, the root mount last.
  for (auto mount = mounts.rbegin(); mount != mounts.rend(); ++mount) {
    RETURN_IF_ERROR(file.Add(*mount));
  }
  return sink.Put(ImageName("mountpoints", number), file.bytes());
}

}  // namespace

Status NamespaceDumper::WriteImages(const UtsNames& names, ImageSink& sink) const {
  if (tree_[kMnt] != ours_[kMnt]) {
    RETURN_IF_ERROR(PutMounts(mounts_, tree_numbers_[kMnt], sink));
  }
  for (const OtherMounts& other : other_mounts_) {
    RETURN_IF_ERROR(PutMounts(other.mounts, other.number, sink));
  }
  if (!ids_.are_ours()) RETURN_IF_ERROR(WriteUserNamespace(ids_, tree_numbers_[kUser], sink));
  if (has_own_uts()) RETURN_IF_ERROR(PutNames(names, tree_numbers_[kUts], sink));
  for (const Other& other : others_) {
    if (other.inode == ours_[other.kind]) continue;
    RETURN_IF_ERROR(other.kind == kUts ? PutNames(other.names, other.number, sink)
                                       : PutNetwork(other.network, other.number, sink));
  }
  if (ipc_) {
    const std::uint32_t number = tree_numbers_[kIpc];
    RETURN_IF_ERROR(PutOne(sink, ImageName("ipcns-var", number), "ipcns-var", ipc_->settings));
    for (const auto& [name, file] :
         {std::pair("ipcns-sem", &ipc_->semaphores), std::pair("ipcns-msg", &ipc_->messages)}) {
      if (!file->empty()) RETURN_IF_ERROR(sink.Put(ImageName(name, number), file->bytes()));
    }
  }
  if (tree_[kNet] != ours_[kNet]) {
    OwnNetwork network = network_;
    if (!network.entry.has_stasis_loopback_up()) network.entry.set_ext_key(kExternalNetwork);
    RETURN_IF_ERROR(PutNetwork(network, tree_numbers_[kNet], sink));
  }
  image::TimensEntry time;
  SetTime(clocks_.monotonic, *time.mutable_monotonic());
  SetTime(clocks_.boottime, *time.mutable_boottime());
  const bool is_own = tree_[kTime] != ours_[kTime];
  return PutOne(sink, ImageName("timens", is_own ? tree_numbers_[kTime] : 0), "timens", time);
}

}  // namespace stasis::engine
