// Restores every open file description once, and gives each process its descriptor table.
//
// Source  openat(2), pidfd_getfd(2), unix(7), close_range(2), dup(2), getrlimit(2)
// Rule    The kernel gives a new descriptor the lowest free number, also those that arrive by
//         SCM_RIGHTS (alloc_fd() in fs/file.c).
// Rule    RLIMIT_NOFILE bounds numbers, not counts: dup3(2) to one at or above it is EBADF.
// Not here The final RLIMIT_NOFILE (tasks/), flags and positions (the kinds).
#include "engine/files/restore_files.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/descriptor_table.h"
#include "engine/files/ghost_file.h"
#include "engine/files/io_uring_restore.h"
#include "engine/files/kept_links.h"
#include "engine/files/memfd.h"
#include "engine/files/network_lock.h"
#include "engine/files/path.h"
#include "engine/files/pidfd.h"
#include "engine/files/process_files.h"
#include "engine/files/pseudo_terminal.h"
#include "engine/files/restore_context.h"
#include "engine/files/restore_locks.h"
#include "engine/files/table_actor.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/image/schema/sockets.pb.h"
#include "engine/memory/restore_layout.h"
#include "engine/tasks/process_tree.h"

namespace stasis::engine {
namespace {

using image::FdinfoEntry;
using image::FileEntry;

class Restorer : public FileRestorer {
 public:
  Restorer(RestoredProcess& root, const CheckpointImages& images, const ImageSource& source,
           const Options& options, const MountNamespaces* mounts, const OtherNamespaces* namespaces)
      : root_(root),
        images_(images),
        source_(source),
        options_(options),
        mounts_(mounts),
        namespaces_(namespaces) {
    std::vector<const ProcessImage*> processes;
    processes.reserve(images.processes.size());
    for (const ProcessImage& process : images.processes) processes.push_back(&process);
    std::ranges::sort(processes, {}, [](const ProcessImage* process) { return process->pid(); });
    for (const ProcessImage* process : processes) {
      for (const FdinfoEntry& descriptor : process->descriptors) {
        holders_.try_emplace(KeyOf(descriptor), Holder{process->pid(), NumberIn(descriptor)});
      }
    }
  }

  Status RestoreAll() override {
    RETURN_IF_ERROR(RaiseOurLimit(holders_.size()));
    ASSIGN_OR_RETURN(root_folder_, OpenAt(root_.proc.get(), "root", O_PATH | O_DIRECTORY));
    ASSIGN_OR_RETURN(ids_, UserIds::Of(root_.proc.get()));
    RestoreContext context(root_, images_, source_, options_, connections_, files_, ids_, dead_,
                           mounts_, namespaces_, notes_);
    RETURN_IF_ERROR(context.TakeStdio());
    ASSIGN_OR_RETURN(network_, OpenAt(root_.proc.get(), "ns/net", O_RDONLY));
    RETURN_IF_ERROR(FindPassed(context));
    ASSIGN_OR_RETURN(rings_, RingRestorer::Create(source_));
    for (const auto& [key, holder] : holders_) {
      const FileEntry* entry = images_.File(key.first, key.second);
      if (entry == nullptr) return InvalidArgument(NameOf(holder) + " is not in files.img");
      if (IsOfProcess(*entry, images_) || rings_.Has(key)) continue;
      Result<UniqueFd> fd = RestoreInPlace(*entry, context);
      if (!fd.ok()) return Annotate(fd.status(), NameOf(holder));
      files_[key] = *std::move(fd);
    }
    RETURN_IF_ERROR(RestorePassed(context));
    RETURN_IF_ERROR(OpenPathless(context));
    RETURN_IF_ERROR(context.EnterMount(-1));
    if (namespaces_ != nullptr) RETURN_IF_ERROR(namespaces_->EnterOwn(root_));
    RETURN_IF_ERROR(CompleteFiles(context));
    ASSIGN_OR_RETURN(terminals_, ControllingTerminals(context));
    return context.Finish();
  }

  Status TakeTerminal(RestoredProcess& leader) override {
    for (const ControllingTerminal& terminal : terminals_) {
      if (terminal.session != leader.image->pid()) continue;
      RETURN_IF_ERROR(WithFile(leader, terminal.slave.get(), [&](int fd) {
        return leader.remote->Call("ioctl TIOCSCTTY", SYS_ioctl, fd, TIOCSCTTY, 0).status();
      }));
    }
    return OkStatus();
  }

  Result<int> OpenMapped(RestoredProcess& process, std::uint32_t id, int flags) override {
    const auto found = pathless_.find(id);
    const auto socket = files_.find({image::FD_PACKETSK, id});
    if (socket != files_.end()) return SendInto(process, socket->second.get());
    if (found == pathless_.end()) {
      RETURN_IF_ERROR(EnterFor(process, images_.File(image::FD_REG, id)));
      return OpenInProcess(process, images_.Path(id), flags);
    }
    const FileEntry* const memfd = images_.File(image::FD_MEMFD, id);
    if (memfd != nullptr) {
      ASSIGN_OR_RETURN(const std::uint32_t seals, SealsOf(*memfd));
      // Else the mapping could become writable, which the seal that is to come forbids.
      if ((seals & F_SEAL_WRITE) != 0) flags = O_RDONLY;
    }
    UniqueFd again;
    int ours = found->second.get();
    if (memfd == nullptr || (flags & O_ACCMODE) != O_RDWR) {
      ASSIGN_OR_RETURN(again, Reopen(ours, flags));
      ours = again.get();
    }
    return SendInto(process, ours);
  }

  void SetTree(std::span<const RestoredProcess> processes) override {
    for (const RestoredProcess& process : processes) {
      host_pids_[process.image->pid()] = process.pid;
      for (const RestoredProcess::Thread& thread : process.others) {
        host_pids_[thread.image->tid] = thread.tracee.tid();
      }
    }
  }

  Status Install(RestoredProcess& process) override {
    RETURN_IF_ERROR(InstallTable(process));
    return rings_.Map(process);
  }

  Status InstallTable(RestoredProcess& process) {
    const std::uint32_t table = process.image->ids.files_id();
    if (table != 0 && !installed_.insert(table).second) return OkStatus();
    std::vector<int> our_fds;
    for (const FdinfoEntry& descriptor : process.image->descriptors) {
      if (rings_.Has(KeyOf(descriptor))) {
        our_fds.push_back(root_folder_.get());  // anything, until the ring takes its place
        continue;
      }
      RETURN_IF_ERROR(OpenOfProcess(process, descriptor));
      const auto found = files_.find(KeyOf(descriptor));
      if (found == files_.end()) return Internal("Install before RestoreAll");
      our_fds.push_back(found->second.get());
    }
    RETURN_IF_ERROR(MakeDescriptorTable(process, our_fds));
    return rings_.Place(process, files_);
  }

  const PathlessFiles& pathless() const override { return pathless_; }

  Status RemoveLinks() override {
    ASSIGN_OR_RETURN(
        const std::vector<image::RemapFilePathEntry> remaps,
        ReadRecords<image::RemapFilePathEntry>(source_, ImageName("remap-fpath"), "remap-fpath"));
    for (const image::RemapFilePathEntry& remap : remaps) {
      if (remap.remap_type() != image::REMAP_LINKED) continue;
      const FileEntry* const link = images_.File(image::FD_REG, remap.remap_id());
      RETURN_IF_ERROR(RemoveKeptLink(FolderOf(link), images_.Path(remap.remap_id())));
    }
    return OkStatus();
  }

  Status Finish(std::vector<RestoredProcess>& processes) override {
    // What is watched must not see them go.
    const bool watches = std::ranges::any_of(images_.files, [](const FileEntry& entry) {
      return entry.type() == image::FD_INOTIFY || entry.type() == image::FD_FANOTIFY;
    });
    if (watches) RETURN_IF_ERROR(RemoveLinks());
    std::map<pid_t, TableActor> actors;
    for (RestoredProcess& process : processes) {
      if (!process.image->zombie) actors.try_emplace(process.image->pid(), process, notes_);
    }
    RETURN_IF_ERROR(rings_.Finish(processes, files_));
    for (const auto& [key, holder] : holders_) {
      const auto actor = actors.find(holder.pid);
      if (actor == actors.end()) return Internal(NameOf(holder) + ": no such process");
      const FileEntry& entry = *images_.File(key.first, key.second);
      RETURN_IF_ERROR(Annotate(FinishFile(entry, holder.fd, actor->second), NameOf(holder)));
    }
    for (const auto& [key, holder] : holders_) {
      const FileEntry& entry = *images_.File(key.first, key.second);
      if (entry.type() != image::FD_REG) continue;
      RETURN_IF_ERROR(Annotate(
          SetMadeUpState(files_.at(key).get(), entry.reg(), actors.at(holder.pid), holder.fd),
          NameOf(holder)));
    }
    RETURN_IF_ERROR(FinishPassed(processes, actors));
    RETURN_IF_ERROR(SetForegrounds(processes, actors));
    RETURN_IF_ERROR(TakeFileLocks(images_, source_, files_, actors));
    RETURN_IF_ERROR(SealAll());
    files_.clear();
    pathless_.clear();
    dead_.End();
    terminals_.clear();
    return OkStatus();
  }

  Status ResumeConnections(const std::function<Status()>& make_rules) override {
    // The dump's firewall. All sockets are there by now: nothing is answered by a reset any more.
    const bool had_any = std::ranges::any_of(images_.files, [](const FileEntry& entry) {
      return entry.type() == image::FD_INETSK && IsKeptState(entry.isk().state()) &&
             entry.isk().proto() == IPPROTO_TCP;
    });
    const bool was_locked = images_.inventory.network_lock_method() == kNetworkLockNftables;
    if (had_any || was_locked) {
      RETURN_IF_ERROR(UnlockNetwork(network_.get(), images_.inventory.dump_criu_run_id()));
    }
    return engine::ResumeConnections(connections_, make_rules);
  }

  const std::vector<std::string>& notes() const override { return notes_; }

 private:
  // The first process that has a file, by pid, and its lowest number there.
  struct Holder {
    pid_t pid;
    int fd;
  };

  // The mount that the path of `entry` leads into, as far as it is known; else -1.
  std::int32_t MountOf(const FileEntry* entry) const {
    if (entry == nullptr) return -1;
    const bool is_by_path = entry->has_fifo() || entry->has_tty();
    const std::uint32_t id = entry->has_fifo() ? entry->fifo().regf_id() : entry->tty().regf_id();
    const FileEntry* const file = is_by_path ? images_.File(image::FD_REG, id) : entry;
    return file != nullptr && file->has_reg() ? file->reg().mnt_id() : -1;
  }

  Status EnterFor(RestoredProcess& process, const FileEntry* entry) const {
    if (mounts_ == nullptr || mounts_->empty()) return OkStatus();
    return mounts_->Enter(process, mounts_->NumberOf(MountOf(entry)));
  }

  // The root of the mount namespace that `entry` is in.
  int FolderOf(const FileEntry* entry) const {
    if (mounts_ == nullptr || mounts_->empty()) return root_folder_.get();
    return mounts_->RootOf(mounts_->NumberOf(MountOf(entry)));
  }

  // The root goes to the namespace that was open.
  Status EnterFor(const FileEntry& entry) {
    const std::uint32_t kind = entry.nsf().ns_cflag();
    const bool moves = kind == CLONE_NEWNET || kind == CLONE_NEWUTS;
    if (namespaces_ == nullptr || entry.type() != image::FD_NS || !moves) return OkStatus();
    return namespaces_->Enter(root_, static_cast<int>(kind), entry.nsf().ns_id());
  }

  // From the namespaces that it was in.
  Result<UniqueFd> RestoreInPlace(const FileEntry& entry, RestoreContext& context) {
    RETURN_IF_ERROR(context.EnterMount(MountOf(&entry)));
    RETURN_IF_ERROR(EnterFor(entry));
    return RestoreFile(entry, context);
  }

  // Files that are held by nobody but a message that waits, and who holds the socket that it waits on.
  Status FindPassed(RestoreContext& context) {
    ASSIGN_OR_RETURN(const auto records, context.Records("sk-queues"));
    for (const FileRestoreContext::Record& record : records) {
      image::SkPacketEntry message;
      if (!message.ParsePartialFromString(record.message) || !message.IsInitialized()) {
        return DataLoss("sk-queues: a record does not parse");
      }
      for (const image::ScmEntry& part : message.scm()) {
        for (const std::uint32_t id : part.rights()) passed_.emplace(id, message.id_for());
      }
    }
    return OkStatus();
  }

  const FileEntry* EntryOf(std::uint32_t id) const {
    const auto found = std::ranges::find(images_.files, id, &FileEntry::id);
    return found == images_.files.end() ? nullptr : &*found;
  }

  Status RestorePassed(RestoreContext& context) {
    for (const auto& [id, socket] : passed_) {
      const std::string name = "file " + std::to_string(id) + " of a message";
      const FileEntry* const entry = EntryOf(id);
      if (entry == nullptr) return DataLoss(name + " is not in files.img");
      const FileKey key(entry->type(), id);
      if (files_.contains(key)) continue;
      if (IsOfProcess(*entry, images_))
        return Unimplemented(name + " is of /proc and a process of the tree");
      Result<UniqueFd> fd = RestoreInPlace(*entry, context);
      if (!fd.ok()) return Annotate(fd.status(), name);
      files_[key] = *std::move(fd);
    }
    return OkStatus();
  }

  // The process that holds the socket on which file `id` waits, perhaps in a message that waits in turn.
  pid_t ReceiverOf(std::uint32_t id) const {
    for (std::size_t step = 0; step <= passed_.size(); ++step) {
      const auto found = passed_.find(id);
      if (found == passed_.end()) break;
      id = found->second;
      const auto holder = holders_.find({image::FD_UNIXSK, id});
      if (holder != holders_.end()) return holder->second.pid;
    }
    return images_.processes.front().pid();
  }

  // Runs `step` while `process` has our descriptor, with its number there.
  static Status WithFile(RestoredProcess& process, int ours,
                         const std::function<Status(int)>& step) {
    ASSIGN_OR_RETURN(const int number, SendInto(process, ours));
    RETURN_IF_ERROR(step(number));
    return process.remote->Call("close", SYS_close, number).status();
  }

  Status SetForegrounds(std::vector<RestoredProcess>& processes,
                        std::map<pid_t, TableActor>& actors) {
    for (const ControllingTerminal& terminal : terminals_) {
      const auto leader = std::ranges::find(
          processes, terminal.session, [](const RestoredProcess& one) { return one.image->pid(); });
      if (leader == processes.end() || leader->image->zombie || terminal.foreground == 0) continue;
      RETURN_IF_ERROR(WithFile(*leader, terminal.slave.get(), [&](int fd) {
        return actors.at(terminal.session).SetForeground(fd, terminal.foreground);
      }));
    }
    return OkStatus();
  }

  // What FinishFile does to those, in the process that will receive them.
  Status FinishPassed(std::vector<RestoredProcess>& processes,
                      std::map<pid_t, TableActor>& actors) {
    for (const auto& [id, socket] : passed_) {
      const FileEntry& entry = *EntryOf(id);
      const FileKey key(entry.type(), id);
      if (holders_.contains(key)) continue;
      const auto process = std::ranges::find(
          processes, ReceiverOf(id), [](const RestoredProcess& one) { return one.image->pid(); });
      if (process == processes.end() || process->image->zombie) {
        return Internal("no process for a file of a message");
      }
      RETURN_IF_ERROR(WithFile(*process, files_[key].get(), [&](int fd) {
        return FinishFile(entry, fd, actors.at(process->image->pid()));
      }));
    }
    return OkStatus();
  }

  // Opens the file of `descriptor` if it shows its process (process_files.h), and `process` is the first to
  // have it.
  Status OpenOfProcess(RestoredProcess& process, const FdinfoEntry& descriptor) {
    const FileKey key = KeyOf(descriptor);
    const FileEntry* const entry = images_.File(key.first, key.second);
    if (files_.contains(key) || entry == nullptr || !IsOfProcess(*entry, images_))
      return OkStatus();
    const auto host_pid = [this](pid_t pid) {
      const auto found = host_pids_.find(pid);
      return found == host_pids_.end() ? 0 : found->second;
    };
    RETURN_IF_ERROR(EnterFor(process, entry));
    ASSIGN_OR_RETURN(files_[key], engine::OpenOfProcess(process, *entry, host_pid, dead_));
    return OkStatus();
  }

  // Opens what each process runs, is in or maps, and which has no path to be opened by there: memfds, deleted
  // files.
  Status OpenPathless(RestoreContext& context) {
    for (const ProcessImage& process : images_.processes) {
      if (process.zombie) continue;
      std::set<std::uint32_t> ids = {process.mm.exe_file_id(), process.fs.cwd_id()};
      for (const image::VmaEntry& vma : process.mm.vmas()) {
        constexpr std::uint32_t kOfFile = 0x40 | 0x80;  // private, shared
        if ((vma.status() & kOfFile) != 0) ids.insert(static_cast<std::uint32_t>(vma.shmid()));
      }
      for (const std::uint32_t id : ids) {
        if (pathless_.contains(id)) continue;
        Result<UniqueFd> fd = OpenIfPathless(id, context);
        if (!fd.ok()) return Annotate(fd.status(), "pid " + std::to_string(process.pid()));
        if (*fd) pathless_[id] = *std::move(fd);
      }
    }
    return OkStatus();
  }

  Result<UniqueFd> OpenIfPathless(std::uint32_t id, RestoreContext& context) {
    if (const FileEntry* const memfd = images_.File(image::FD_MEMFD, id)) {
      ASSIGN_OR_RETURN(const image::MemfdInodeEntry inode, InodeOf(*memfd));
      // Nameless shared memory, as CRIU dumps it: a memory area's own (restore_layout.h).
      if (inode.name() == kZeroFile && !zero_files_.contains(inode.inode_id())) return UniqueFd();
      return RestoreMappedMemfd(memfd->memfd(), context);
    }
    const FileEntry* const file = images_.File(image::FD_REG, id);
    if (file == nullptr) return UniqueFd();  // for the memory's restore to complain about
    ASSIGN_OR_RETURN(const auto remap, RemapOf(id, context));
    if (!remap) return UniqueFd();
    return RestoreInPlace(*file, context);
  }

  Result<image::MemfdInodeEntry> InodeOf(const FileEntry& memfd) const {
    ASSIGN_OR_RETURN(const std::vector<image::MemfdInodeEntry> inodes,
                     ReadRecords<image::MemfdInodeEntry>(source_, ImageName("memfd"), "memfd"));
    const auto found =
        std::ranges::find(inodes, memfd.memfd().inode_id(), &image::MemfdInodeEntry::inode_id);
    if (found == inodes.end()) return DataLoss("a memfd that is not in memfd.img");
    return *found;
  }
  Result<std::uint32_t> SealsOf(const FileEntry& memfd) const {
    ASSIGN_OR_RETURN(const image::MemfdInodeEntry inode, InodeOf(memfd));
    return inode.seals();
  }

  Status SealAll() {
    const auto seal = [this](std::uint32_t id, const UniqueFd& fd) -> Status {
      const FileEntry* const memfd = images_.File(image::FD_MEMFD, id);
      if (memfd == nullptr) return OkStatus();
      ASSIGN_OR_RETURN(const std::uint32_t seals, SealsOf(*memfd));
      return SealMemfd(fd.get(), seals);
    };
    for (const auto& [key, fd] : files_) {
      if (key.first == image::FD_MEMFD) RETURN_IF_ERROR(seal(key.second, fd));
    }
    for (const auto& [id, fd] : pathless_) RETURN_IF_ERROR(seal(id, fd));
    return OkStatus();
  }

  // The kinds' errors tell the rest.
  static std::string NameOf(const Holder& holder) {
    return "pid " + std::to_string(holder.pid) + " fd " + std::to_string(holder.fd);
  }

  RestoredProcess& root_;  // only until RestoreAll() has ended
  UniqueFd root_folder_;
  UserIds ids_;
  const CheckpointImages& images_;
  const std::set<std::uint64_t> zero_files_ = OpenZeroFiles(images_);
  const ImageSource& source_;
  const Options options_;
  const MountNamespaces* const mounts_;      // null: one for all
  const OtherNamespaces* const namespaces_;  // null: the same
  std::map<FileKey, Holder> holders_;
  std::vector<ControllingTerminal> terminals_;
  std::map<FileKey, UniqueFd> files_;
  RingRestorer rings_;
  PathlessFiles pathless_;
  std::set<std::uint32_t> installed_;  // tables, by id: what processes share is made once
  UniqueFd network_;                   // the network namespace
  std::vector<PendingConnection> connections_;
  std::map<pid_t, pid_t> host_pids_;  // and tids, as we see them, by those of the images
  DeadProcesses dead_;
  std::map<std::uint32_t, std::uint32_t>
      passed_;  // files in messages, by id: the id of the receiver
  std::vector<std::string> notes_;
};

}  // namespace

std::unique_ptr<FileRestorer> MakeFileRestorer(RestoredProcess& root,
                                               const CheckpointImages& images,
                                               const ImageSource& source, const Options& options,
                                               const MountNamespaces* mounts,
                                               const OtherNamespaces* namespaces) {
  return std::make_unique<Restorer>(root, images, source, options, mounts, namespaces);
}

Result<int> OpenInProcess(RestoredProcess& process, const std::string& path, int flags) {
  if (!path.starts_with('/')) return InvalidArgument("open \"" + path + "\": not an absolute path");
  process.remote->ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, process.remote->Put(path));
  ASSIGN_OR_RETURN(
      const std::uint64_t number,
      process.remote->Call("open " + path, SYS_openat, AT_FDCWD, address, flags | O_CLOEXEC, 0));
  return static_cast<int>(number);
}

}  // namespace stasis::engine
