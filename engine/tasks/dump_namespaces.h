// Namespaces of the tree: their numbers in the images, and what is in them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/user_ids.h"
#include "engine/dump.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/image/schema/tasks.pb.h"
#include "engine/mounts/pending_mounts.h"
#include "engine/proc/mountinfo.h"
#include "engine/tasks/clocks.h"
#include "engine/tasks/dump_inside.h"
#include "engine/tasks/dump_ipc.h"
#include "engine/tasks/own_network.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

class NamespaceDumper {
 public:
  /// Numbers our namespaces and those of the tree's root.
  static Result<NamespaceDumper> Create(const FrozenProcess& root);

  /// Unimplemented when a thread of `process` is not in the root's namespaces, or would have its children elsewhere.
  /// Read() tells of those of mounts, networks and names (UTS), in which only all threads of a process may be elsewhere.
  /// Its threads share their directories (see CheckShares).
  Status CheckSame(const FrozenProcess& process) const;
  /// The same of one thread; for any thread of ours.
  Status CheckSame(const FrozenProcess& process, const FrozenThread& thread) const;

  /// A mount namespace that processes of the tree are in, and the root is not.
  struct OtherMounts {
    std::uint64_t inode = 0;
    std::uint32_t number = 0;
    const FrozenProcess* process =
        nullptr;  ///< One that is in it, and whose root directory is its root.
    std::vector<image::MntEntry> mounts;  ///< After Read(), in the order of mountinfo.
  };
  /// A network or UTS namespace that processes of the tree are in, and the root is not.
  struct Other {
    std::size_t kind = 0;
    std::uint64_t inode = 0;
    std::uint32_t number = 0;
    const FrozenProcess* process = nullptr;  ///< One that is in it.
    OwnNetwork network = {};                 ///< After Read(), as are the names.
    UtsNames names = {};
  };
  /// Finds all of these. Before processes are numbered, and before Read().
  Status FindOthers(std::span<const FrozenProcess> processes);
  std::span<const OtherMounts> other_mounts() const { return other_mounts_; }
  const std::map<pid_t, std::uint32_t>& elsewhere() const {
    return elsewhere_;
  }  ///< Their numbers, by our pids.

  /// Numbers for ids-PID.img, and for the inventory's root_ids (ours).
  void NumberTree(image::TaskKobjIdsEntry& ids) const;
  /// The same for `process`, once FindOthers() has been called.
  void NumberProcess(pid_t pid, image::TaskKobjIdsEntry& ids) const;
  void NumberOurs(image::TaskKobjIdsEntry& ids) const;

  /// True when the tree's uts namespace is not ours, and its names are to be asked for.
  bool has_own_uts() const;
  bool has_own_ipc() const;
  bool has_own_pid() const;
  bool has_own_net() const;
  std::uint64_t pid_namespace() const;  ///< Its inode.
  /// Users and groups of the tree's user namespace: those that images have.
  const UserIds& ids() const { return ids_; }

  bool IsOfRoot(std::uint32_t type, std::uint64_t inode) const;

  /// The number of the namespace of `type` (CLONE_NEWNET, …) with that inode; 0 when it is not the root's, nor a network
  /// or UTS namespace that a process of the tree is in.
  std::uint32_t NumberOf(std::uint32_t type, std::uint64_t inode) const;

  /// Reads what is dumped of the namespaces; the tree stands still. Unimplemented: mounts that processes made
  /// and that cannot be made again; processes in other networks or with other names than the root, where a restore does
  /// not make these. `compare` and `outside` as in DumpRequest; `makes`: whether a restore makes namespaces.
  Status Read(std::span<const FrozenProcess> processes, const CompareMounts& compare,
              const OutsideMounts& outside, bool makes);
  /// Has mounts of terminals that are not the tree's own given from outside, once its files are known.
  void GiveTerminals(const IsOwnTerminal& is_own);
  /// After Read(): the mounts of all namespaces that are not ours.
  std::vector<const image::MntEntry*> mounts() const;
  /// The part of it that is about networks which a restore makes again. `processes`: all, the root first.
  Status ReadNetworks(std::span<const FrozenProcess> processes);
  /// Makes these networks somewhere, to see that a restore can; the tree may run. Takes tenths of a second.
  /// Unimplemented: one in which other processes than the root are cannot be made.
  Status TryNetworks();
  /// What a restore has to be told about these, a sentence each; after TryNetworks.
  std::vector<std::string> NeedsOfNetworks() const;
  /// Ids of the System V segments of an IPC namespace of its own that nobody is attached to.
  std::vector<int> idle_segments() const { return ipc_ ? ipc_->idle_segments : std::vector<int>(); }

  /// mountpoints-N, utsns-N, ipcns-var-N, netns-N for namespaces that are not ours, and timens-N; timens-0 for ours.
  Status WriteImages(const UtsNames& names, ImageSink& sink) const;

 private:
  static constexpr std::size_t kKinds = 8;
  using Inodes = std::array<std::uint64_t, kKinds>;

  static Result<Inodes> ReadInodes(int task_fd);
  Status ReadMounts(const FrozenProcess& root, const CompareMounts& compare,
                    const OutsideMounts& outside);
  Status ReadOtherMounts(const std::vector<Mount>& of_root, const CompareMounts& compare,
                         const OutsideMounts& outside, MountChanges& changes);
  Status ReadOthers(bool makes);
  static Status InOther(const Other& other);
  Status FindOther(const FrozenProcess& process, std::size_t kind, std::uint32_t& next);
  Status CheckThread(int ns_fd, const FrozenProcess& process, bool is_leader) const;

  Inodes ours_ = {}, tree_ = {};
  UserIds ids_;
  std::array<std::uint32_t, kKinds> tree_numbers_ = {};
  std::vector<image::MntEntry> mounts_;  // in the order of mountinfo
  std::vector<OtherMounts> other_mounts_;
  std::map<pid_t, std::uint32_t> elsewhere_;  // numbers of other_mounts_, by our pids
  std::vector<Other> others_;
  std::map<std::pair<std::size_t, pid_t>, std::uint32_t> numbers_;  // of these, by our pids
  std::optional<IpcObjects> ipc_;
  std::vector<UniqueFd> network_fds_;
  std::vector<NumberedNetwork> to_try_;  // of these, that a restore makes
  OwnNetwork network_;            // with the state of its loopback device when a restore makes it
  std::string network_obstacle_;  // why none does
  Clocks clocks_;
};

}  // namespace stasis::engine
