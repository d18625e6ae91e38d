// What the kinds of files see of a restore, and what they do in its root process.
//
// Source  openat(2), pidfd_getfd(2), unix(7)
// Rule    A file carries the rights, namespaces and label of the task that opened it. So the root
//         opens (by remote calls), we take what it got by pidfd_getfd(2) and it closes its own.
#pragma once

#include <fcntl.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/checkpoint_images.h"
#include "engine/files/file_kind.h"
#include "engine/files/pidfd.h"
#include "engine/files/socket.h"
#include "engine/files/tcp_connection.h"
#include "engine/image/image_file.h"
#include "engine/memory/restore_pages.h"
#include "engine/mounts/mount_namespaces.h"
#include "engine/tasks/other_namespaces.h"
#include "engine/tasks/process_tree.h"
#include "engine/tasks/restored_process.h"
#include "engine/tracee/fd_channel.h"

namespace stasis::engine {

/// Acts in the root of the tree under restore, while it is still what the runtime started.
class RootActor : public FileActor {
 public:
  explicit RootActor(RestoredProcess& root) : root_(root) {}

  Result<UniqueFd> Open(const std::string& path, int flags, unsigned mode) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    ASSIGN_OR_RETURN(const std::uint64_t number, remote().Call("open " + path, SYS_openat, AT_FDCWD,
                                                               address, flags | O_CLOEXEC, mode));
    return TakeAway(static_cast<int>(number));
  }

  Result<UniqueFd> Socket(int domain, int type, int protocol) override {
    ASSIGN_OR_RETURN(const std::uint64_t number,
                     remote().Call("socket", SYS_socket, domain, type | SOCK_CLOEXEC, protocol));
    return TakeAway(static_cast<int>(number));
  }

  Result<std::pair<UniqueFd, UniqueFd>> SocketPair(int domain, int type, int protocol) override {
    remote().ResetArguments();
    using Pair = std::array<int, 2>;
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Reserve(sizeof(Pair)));
    RETURN_IF_ERROR(
        remote()
            .Call("socketpair", SYS_socketpair, domain, type | SOCK_CLOEXEC, protocol, address)
            .status());
    ASSIGN_OR_RETURN(const Pair numbers, remote().ReadValue<Pair>(address));
    ASSIGN_OR_RETURN(UniqueFd first, TakeAway(numbers[0]));
    ASSIGN_OR_RETURN(UniqueFd second, TakeAway(numbers[1]));
    return std::pair(std::move(first), std::move(second));
  }

  Status Bind(int fd, std::span<const std::byte> address) override {
    return WithAddress("bind", SYS_bind, fd, address);
  }
  Status Connect(int fd, std::span<const std::byte> address) override {
    return WithAddress("connect", SYS_connect, fd, address);
  }

  Status SetOption(int fd, int level, int name, std::span<const std::byte> value) override {
    ASSIGN_OR_RETURN(const std::uint64_t number, SendIn(fd));
    ASSIGN_OR_RETURN(const std::uint64_t at, remote().Put(value));
    const Status status =
        remote().Call("setsockopt", SYS_setsockopt, number, level, name, at, value.size()).status();
    RETURN_IF_ERROR(remote().Call("close", SYS_close, number).status());
    return status;
  }

  Result<UniqueFd> MemoryFile(const std::string& name, unsigned flags, std::uint64_t size_bytes,
                              std::uint64_t id, const ImageSource& source) override {
    ASSIGN_OR_RETURN(const PageSet pages, ReadPageSet(source, ImageName("pagemap-shmem", id)));
    const AddressRange whole = {0, (size_bytes + kPageBytes - 1) & ~(kPageBytes - 1)};
    const PageTarget everywhere = {.range = whole};
    RETURN_IF_ERROR(CheckPlaces(pages, std::span(&everywhere, 1)));
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(name));
    ASSIGN_OR_RETURN(const std::uint64_t number,
                     remote().Call("memfd_create", SYS_memfd_create, address, flags | MFD_CLOEXEC));
    RETURN_IF_ERROR(remote().Call("ftruncate a memfd", SYS_ftruncate, number, size_bytes).status());
    if (!pages.runs.empty()) RETURN_IF_ERROR(Fill(number, pages, whole.end, source));
    return TakeAway(static_cast<int>(number));
  }

  Result<UniqueFd> SharedMemory(std::uint64_t size_bytes, std::uint64_t id,
                                const ImageSource& source) override {
    ASSIGN_OR_RETURN(const PageSet pages, ReadPageSet(source, ImageName("pagemap-shmem", id)));
    const std::uint64_t size =
        std::max(kPageBytes, (size_bytes + kPageBytes - 1) & ~(kPageBytes - 1));
    const PageTarget everywhere = {.range = {0, size}};
    RETURN_IF_ERROR(CheckPlaces(pages, std::span(&everywhere, 1)));
    ASSIGN_OR_RETURN(const std::uint64_t start,
                     remote().Call("mmap shared memory", SYS_mmap, 0, size, PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const std::string link = "map_files/" + ToText(AddressRange{start, start + size});
    ASSIGN_OR_RETURN(UniqueFd fd, OpenAt(root_.proc.get(), link, O_RDWR));
    RETURN_IF_ERROR(Write(start, pages, size, source));
    // Not always whole pages: who has it as a file may have cut it.
    if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
      return SyscallError(errno, "ftruncate shared memory");
    }
    return fd;
  }

  Result<UniqueFd> MessageQueue(const std::string& name, int flags, std::uint64_t max_messages,
                                std::uint64_t message_bytes) override {
    mq_attr limits = {};
    limits.mq_maxmsg = static_cast<long>(max_messages);
    limits.mq_msgsize = static_cast<long>(message_bytes);
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote().Put(name));
    ASSIGN_OR_RETURN(const std::uint64_t attributes, remote().PutValue(limits));
    ASSIGN_OR_RETURN(const std::uint64_t number,
                     remote().Call("mq_open " + name, SYS_mq_open, at, flags, 0600, attributes));
    return TakeAway(static_cast<int>(number));
  }

  Status UnlinkQueue(const std::string& name) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote().Put(name));
    return remote().Call("mq_unlink " + name, SYS_mq_unlink, at).status();
  }

  Result<UniqueFd> BpfMap(std::span<const std::byte> attributes) override {
    constexpr int kMapCreate = 0;  // BPF_MAP_CREATE
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote().Put(attributes));
    ASSIGN_OR_RETURN(const std::uint64_t number, remote().Call("bpf BPF_MAP_CREATE", SYS_bpf,
                                                               kMapCreate, at, attributes.size()));
    return TakeAway(static_cast<int>(number));
  }

  Result<UniqueFd> Fanotify(unsigned flags, unsigned event_flags) override {
    ASSIGN_OR_RETURN(const std::uint64_t number,
                     remote().Call("fanotify_init", SYS_fanotify_init, flags, event_flags));
    return TakeAway(static_cast<int>(number));
  }

  Status Unlink(const std::string& path) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    return remote().Call("unlink " + path, SYS_unlinkat, AT_FDCWD, address, 0).status();
  }

  Status RemoveFolder(const std::string& path) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    return remote().Call("rmdir " + path, SYS_unlinkat, AT_FDCWD, address, AT_REMOVEDIR).status();
  }

  Status MakeNode(const std::string& path, unsigned mode, dev_t device) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    if (S_ISDIR(mode)) {
      return remote().Call("mkdir " + path, SYS_mkdirat, AT_FDCWD, address, mode & 07777).status();
    }
    return remote().Call("mknod " + path, SYS_mknodat, AT_FDCWD, address, mode, device).status();
  }

  Status MakeSymlink(const std::string& target, const std::string& path) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t from, remote().Put(target));
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    return remote().Call("symlink " + path, SYS_symlinkat, from, AT_FDCWD, address).status();
  }

  Status SetMode(const std::string& path, unsigned mode) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    return remote().Call("chmod " + path, SYS_fchmodat, AT_FDCWD, address, mode).status();
  }
  // A clone of ours that enters the tree's namespaces: what it makes and notes is as of a process there.
  Status AsProcess(pid_t pid, const std::function<int()>& step) override {
    const int namespaces = root_.pidfd.get();
    return InNamespace(namespaces, CLONE_NEWPID | CLONE_NEWNET, [&]() -> Status {
      clone_args arguments = {};
      arguments.flags = CLONE_FILES;
      arguments.set_tid = reinterpret_cast<std::uint64_t>(&pid);
      arguments.set_tid_size = 1;
      const long child = ::syscall(SYS_clone3, &arguments, sizeof(arguments));
      if (child == 0) ::syscall(SYS_exit_group, step());
      const std::string name = "a process with pid " + std::to_string(pid);
      if (child < 0) {
        if (errno == EEXIST) return AlreadyExists(name + ": that pid is taken");
        return SyscallError(errno, name);
      }
      int status = 0;
      while (::waitpid(static_cast<pid_t>(child), &status, __WALL) < 0) {
        if (errno != EINTR) return SyscallError(errno, "wait for " + name);
      }
      if (!WIFEXITED(status)) return Internal(name + " was killed");
      return WEXITSTATUS(status) == 0 ? OkStatus() : SyscallError(WEXITSTATUS(status), name);
    });
  }

  std::pair<pid_t, pid_t> Pids() const override { return {root_.image->pid(), root_.pid}; }

  /// A copy of descriptor `number` of the root; empty when it has none.
  Result<UniqueFd> Copy(int number) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, root_.pidfd.get(), number, 0)));
    if (!fd && errno != EBADF) {
      return SyscallError(errno, "pidfd_getfd of descriptor " + std::to_string(number));
    }
    return fd;
  }

  /// Takes back what acting needed in the root.
  Status Finish() {
    if (!channel_) return OkStatus();
    const Status status = channel_->Close(remote());
    channel_.reset();
    return status;
  }

 private:
  RemoteSyscalls& remote() { return *root_.remote; }

  Result<UniqueFd> TakeAway(int number) { return TakeFrom(root_, number); }

  // The file `number` of the process, through a mapping for that moment.
  Status Fill(std::uint64_t number, const PageSet& pages, std::uint64_t size,
              const ImageSource& source) {
    ASSIGN_OR_RETURN(const std::uint64_t start,
                     remote().Call("mmap a memfd", SYS_mmap, 0, size, PROT_READ | PROT_WRITE,
                                   MAP_SHARED, number, 0));
    return Write(start, pages, size, source);
  }

  // Into memory of the root, which is unmapped then.
  Status Write(std::uint64_t start, const PageSet& pages, std::uint64_t size,
               const ImageSource& source) {
    ASSIGN_OR_RETURN(const UniqueFd mem, OpenAt(root_.proc.get(), "mem", O_RDWR));
    const PageTarget target = {.range = {0, size}, .address = start};
    RETURN_IF_ERROR(WritePages(source, pages, std::span(&target, 1), root_.pid, mem.get(),
                               [](std::uint64_t) {}));
    return remote().Call("munmap", SYS_munmap, start, size).status();
  }

  // The number in the root of our descriptor `fd`.
  Result<std::uint64_t> SendIn(int fd) {
    if (!channel_) {
      ASSIGN_OR_RETURN(channel_, FdChannel::Open(remote(), root_.pidfd.get()));
    }
    ASSIGN_OR_RETURN(const std::vector<int> number, channel_->Send(remote(), std::span(&fd, 1)));
    return static_cast<std::uint64_t>(number[0]);
  }

  Status WithAddress(std::string_view what, long call, int fd, std::span<const std::byte> address) {
    ASSIGN_OR_RETURN(const std::uint64_t number, SendIn(fd));
    ASSIGN_OR_RETURN(const std::uint64_t at, remote().Put(address));
    const Status status = remote().Call(what, call, number, at, address.size()).status();
    RETURN_IF_ERROR(remote().Call("close", SYS_close, number).status());
    return status;
  }

  RestoredProcess& root_;
  std::optional<FdChannel> channel_;  // there once a socket had to go in
};

/// The images' records, and what the root's first descriptors stand for.
class RestoreContext : public FileRestoreContext {
 public:
  using Files = std::map<std::pair<image::FdTypes, std::uint32_t>, UniqueFd>;

  /// `files`: what is restored so far.
  RestoreContext(RestoredProcess& root, const CheckpointImages& images, const ImageSource& source,
                 const Options& options, std::vector<PendingConnection>& connections,
                 const Files& files, const UserIds& ids, DeadProcesses& dead,
                 const MountNamespaces* mounts, const OtherNamespaces* namespaces,
                 std::vector<std::string>& notes)
      : root_(root),
        mounts_(mounts),
        namespaces_(namespaces),
        actor_(root),
        images_(images),
        source_(source),
        options_(options),
        connections_(connections),
        files_(files),
        ids_(ids),
        member_(root.pidfd.get()),
        dead_(dead),
        notes_(notes) {}

  /// Before anything is opened: takes the root's first descriptors.
  Status TakeStdio() {
    for (std::size_t i = 0; i < stdio_.size(); ++i) {
      ASSIGN_OR_RETURN(stdio_[i], actor_.Copy(static_cast<int>(i)));
    }
    // What the runtime told of the start, then what was there at the checkpoint.
    for (std::size_t i = 0; i < std::min(images_.stdio.size(), stdio_.size()); ++i) {
      external_.emplace(images_.stdio[i], i);
    }
    for (const image::FdinfoEntry& descriptor : images_.processes.front().descriptors) {
      if (descriptor.fd() >= stdio_.size() || descriptor.type() != image::FD_PIPE) continue;
      const image::FileEntry* entry = Entry(image::FD_PIPE, descriptor.id());
      if (entry != nullptr) external_.emplace(PipeLink(entry->pipe()), descriptor.fd());
    }
    KeepOwnSockets();
    return KeepOwnPipes();
  }

  const Options& options() const override { return options_; }
  FileActor& actor() override { return actor_; }
  const UserIds& ids() const override { return ids_; }
  const image::FileEntry* Entry(image::FdTypes type, std::uint32_t id) const override {
    return images_.File(type, id);
  }
  std::span<const image::FileEntry> entries() const override { return images_.files; }

  Result<std::span<const Record>> Records(std::string_view image_name) override {
    auto found = records_.find(image_name);
    if (found == records_.end()) {
      ASSIGN_OR_RETURN(std::vector<ImageRecord> read,
                       ReadImageRecords(source_, ImageName(image_name), image_name));
      std::vector<Record> records;
      records.reserve(read.size());
      for (ImageRecord& record : read) {
        records.push_back({std::move(record.message), std::move(record.bytes)});
      }
      found = records_.emplace(image_name, std::move(records)).first;
    }
    return std::span<const Record>(found->second);
  }

  const ImageSource& source() const override { return source_; }
  Status EnterMount(std::int32_t mnt_id) override {
    if (mounts_ == nullptr || mounts_->empty()) return OkStatus();
    return mounts_->Enter(root_, mounts_->NumberOf(mnt_id));
  }
  Status EnterNetwork(std::uint32_t number) override {
    return namespaces_ == nullptr ? OkStatus() : namespaces_->Enter(root_, CLONE_NEWNET, number);
  }
  Result<int> Restored(std::uint32_t id) override {
    for (int type = image::FdTypes_MIN; type <= image::FD_PIDFD; ++type) {
      const auto found = files_.find({static_cast<image::FdTypes>(type), id});
      if (found != files_.end()) return found->second.get();
    }
    return DataLoss("file " + std::to_string(id) + " of a message is not in files.img");
  }
  int ExternalStdio(std::string_view link) const override {
    const auto found = external_.find(link);
    return found == external_.end() ? -1 : stdio_[found->second].get();
  }
  Status MakeDead(pid_t pid) override { return dead_.Make(pid, member_); }
  std::map<std::string, UniqueFd>& Kept() override { return kept_; }
  std::vector<SharedPort>& SharedPorts() override { return shared_ports_; }
  std::vector<PendingConnection>& Connections() override { return connections_; }
  void Note(std::string text) override { notes_.push_back(std::move(text)); }

  Status Finish() {
    for (const SharedPort& port : shared_ports_) {
      RETURN_IF_ERROR(
          SetSocketOption(port.fd.get(), SOL_SOCKET, SO_REUSEADDR, int{port.reuse_address}));
      RETURN_IF_ERROR(
          SetSocketOption(port.fd.get(), SOL_SOCKET, SO_REUSEPORT, int{port.reuse_port}));
    }
    return actor_.Finish();
  }

 private:
  static std::string PipeLink(const image::PipeEntry& pipe) {
    return "pipe:[" + std::to_string(pipe.pipe_id()) + "]";
  }

  // A pipe of which the tree holds both ends is its own, wherever it is. One whose other end was a
  // runtime's or caller's needs the new one's in its place.
  Status KeepOwnPipes() {
    std::map<std::string, unsigned> ends;
    for (const image::FileEntry& entry : entries()) {
      if (entry.type() != image::FD_PIPE) continue;
      const std::uint32_t mode = entry.pipe().flags() & O_ACCMODE;
      ends[PipeLink(entry.pipe())] |= (mode != O_WRONLY ? 1u : 0u) | (mode != O_RDONLY ? 2u : 0u);
    }
    for (const auto& [link, held] : ends) {
      const auto found = external_.find(link);
      if (found == external_.end()) continue;
      if (held == 3) {
        external_.erase(found);
      } else if (!stdio_[found->second]) {
        return FailedPrecondition("the checkpoint had " + link + " of its starter as descriptor " +
                                  std::to_string(found->second) +
                                  ", but the process to become its root has that one closed");
      }
    }
    return OkStatus();
  }

  // The same for a unix socket: a starter's is one whose peer is not in the tree.
  void KeepOwnSockets() {
    std::set<std::uint32_t> inodes = {0};  // no peer
    for (const image::FileEntry& entry : entries()) {
      constexpr std::uint32_t kExternal = 1;  // of uflags: the peer's entry, not a file of the tree
      if (entry.type() != image::FD_UNIXSK || (entry.usk().uflags() & kExternal) != 0) continue;
      inodes.insert(entry.usk().ino());
    }
    for (const image::FileEntry& entry : entries()) {
      if (entry.type() != image::FD_UNIXSK || !inodes.contains(entry.usk().peer())) continue;
      external_.erase("socket:[" + std::to_string(entry.usk().ino()) + "]");
    }
  }

  RestoredProcess& root_;
  const MountNamespaces* const mounts_;      // null: one for all
  const OtherNamespaces* const namespaces_;  // null: the same
  RootActor actor_;
  const CheckpointImages& images_;
  const ImageSource& source_;
  const Options& options_;
  std::vector<PendingConnection>& connections_;
  const Files& files_;
  const UserIds& ids_;
  const int member_;  // pidfd of the root
  DeadProcesses& dead_;
  std::vector<std::string>& notes_;
  std::array<UniqueFd, 3> stdio_;
  std::map<std::string, std::size_t, std::less<>> external_;  // index of stdio_ by link
  std::map<std::string, std::vector<Record>, std::less<>> records_;
  std::map<std::string, UniqueFd> kept_;
  std::vector<SharedPort> shared_ports_;
};

}  // namespace stasis::engine
