// Restores every open file description once, and gives each process its descriptor table.
//
// Source  openat(2), pidfd_getfd(2), unix(7), close_range(2), dup(2), fcntl(2) F_SETOWN_EX,
//         getrlimit(2)
// Rule    A file carries the rights, namespaces and label of the task that opened it. So the root
//         opens (by remote calls), we take what it got by pidfd_getfd(2) and it closes its own.
// Rule    The kernel gives a new descriptor the lowest free number, also those that arrive by
//         SCM_RIGHTS (alloc_fd() in fs/file.c).
// Rule    RLIMIT_NOFILE bounds numbers, not counts: dup3(2) to one at or above it is EBADF.
// Not here The final RLIMIT_NOFILE (tasks/), flags and positions (the kinds).
#include "engine/files/restore_files.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/descriptor_table.h"
#include "engine/files/file_locks.h"
#include "engine/files/ghost_file.h"
#include "engine/files/memfd.h"
#include "engine/files/path.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/memory/restore_pages.h"
#include "engine/tracee/fd_channel.h"

namespace stasis::engine {
namespace {

using image::FdinfoEntry;
using image::FdTypes;
using image::FileEntry;
using image::FownEntry;

#ifndef INOTIFY_IOC_SETNEXTWD
#define INOTIFY_IOC_SETNEXTWD _IOW('I', 0, std::int32_t)  // linux/inotify.h
#endif

// An open file description as the images name it.
using FileKey = std::pair<FdTypes, std::uint32_t>;
FileKey KeyOf(const FdinfoEntry& descriptor) { return {descriptor.type(), descriptor.id()}; }
int NumberIn(const FdinfoEntry& descriptor) { return static_cast<int>(descriptor.fd()); }

constexpr std::string_view kProc = "/proc/";

// Descriptors that we need besides those of the images.
constexpr std::size_t kOwnDescriptors = 256;

// --- Acting in the root process ---

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

  Status Unlink(const std::string& path) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    return remote().Call("unlink " + path, SYS_unlinkat, AT_FDCWD, address, 0).status();
  }

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

  Result<UniqueFd> TakeAway(int number) {
    ASSIGN_OR_RETURN(UniqueFd fd, Copy(number));
    if (!fd) return Internal("the root lost its descriptor " + std::to_string(number));
    RETURN_IF_ERROR(remote().Call("close", SYS_close, number).status());
    return fd;
  }

  // The file `number` of the process, through a mapping for that moment.
  Status Fill(std::uint64_t number, const PageSet& pages, std::uint64_t size,
              const ImageSource& source) {
    ASSIGN_OR_RETURN(const std::uint64_t start,
                     remote().Call("mmap a memfd", SYS_mmap, 0, size, PROT_READ | PROT_WRITE,
                                   MAP_SHARED, number, 0));
    ASSIGN_OR_RETURN(const UniqueFd mem, OpenAt(root_.proc.get(), "mem", O_RDWR));
    const PageTarget target = {.range = {0, size}, .address = start};
    RETURN_IF_ERROR(WritePages(source, pages, std::span(&target, 1), root_.pid, mem.get(),
                               [](std::uint64_t) {}));
    return remote().Call("munmap", SYS_munmap, start, size).status();
  }

  Status WithAddress(std::string_view what, long call, int fd, std::span<const std::byte> address) {
    if (!channel_) {
      ASSIGN_OR_RETURN(channel_, FdChannel::Open(remote(), root_.pidfd.get()));
    }
    ASSIGN_OR_RETURN(const std::vector<int> number, channel_->Send(remote(), std::span(&fd, 1)));
    ASSIGN_OR_RETURN(const std::uint64_t at, remote().Put(address));
    const Status status = remote().Call(what, call, number[0], at, address.size()).status();
    RETURN_IF_ERROR(remote().Call("close", SYS_close, number[0]).status());
    return status;
  }

  RestoredProcess& root_;
  std::optional<FdChannel> channel_;  // there once a socket had to go in
};

// --- What the kinds see ---

class Context : public FileRestoreContext {
 public:
  Context(RestoredProcess& root, const CheckpointImages& images, const ImageSource& source,
          std::vector<std::string>& notes)
      : actor_(root), images_(images), source_(source), notes_(notes) {}

  /// Before anything is opened: takes the root's first descriptors.
  Status TakeStdio() {
    for (std::size_t i = 0; i < stdio_.size(); ++i) {
      ASSIGN_OR_RETURN(stdio_[i], actor_.Copy(static_cast<int>(i)));
    }
    // What the runtime told of the start, then what was there at the checkpoint.
    for (std::size_t i = 0; i < std::min(images_.stdio.size(), stdio_.size()); ++i) {
      external_.emplace(images_.stdio[i], i);
    }
    for (const FdinfoEntry& descriptor : images_.processes.front().descriptors) {
      if (descriptor.fd() >= stdio_.size() || descriptor.type() != image::FD_PIPE) continue;
      const FileEntry* entry = Entry(image::FD_PIPE, descriptor.id());
      if (entry != nullptr) external_.emplace(PipeLink(entry->pipe()), descriptor.fd());
    }
    KeepOwnSockets();
    return KeepOwnPipes();
  }

  FileActor& actor() override { return actor_; }
  const FileEntry* Entry(FdTypes type, std::uint32_t id) const override {
    return images_.File(type, id);
  }
  std::span<const FileEntry> entries() const override { return images_.files; }

  Result<std::span<const Record>> Records(std::string_view image_name) override {
    auto found = records_.find(image_name);
    if (found == records_.end()) {
      ASSIGN_OR_RETURN(std::vector<ImageRecord> read,
                       ReadImageRecords(source_, ImageName(image_name), image_name));
      std::vector<Record> records;
      for (ImageRecord& record : read) {
        records.push_back({std::move(record.message), std::move(record.bytes)});
      }
      found = records_.emplace(image_name, std::move(records)).first;
    }
    return std::span<const Record>(found->second);
  }

  const ImageSource& source() const override { return source_; }
  int ExternalStdio(std::string_view link) const override {
    const auto found = external_.find(link);
    return found == external_.end() ? -1 : stdio_[found->second].get();
  }
  std::map<std::string, UniqueFd>& Kept() override { return kept_; }
  void Note(std::string text) override { notes_.push_back(std::move(text)); }

  Status Finish() { return actor_.Finish(); }

 private:
  static std::string PipeLink(const image::PipeEntry& pipe) {
    return "pipe:[" + std::to_string(pipe.pipe_id()) + "]";
  }

  // A pipe of which the tree holds both ends is its own, wherever it is. One whose other end was a
  // runtime's or caller's needs the new one's in its place.
  Status KeepOwnPipes() {
    std::map<std::string, unsigned> ends;
    for (const FileEntry& entry : entries()) {
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
    for (const FileEntry& entry : entries()) {
      constexpr std::uint32_t kExternal = 1;  // of uflags: the peer's entry, not a file of the tree
      if (entry.type() != image::FD_UNIXSK || (entry.usk().uflags() & kExternal) != 0) continue;
      inodes.insert(entry.usk().ino());
    }
    for (const FileEntry& entry : entries()) {
      if (entry.type() != image::FD_UNIXSK || !inodes.contains(entry.usk().peer())) continue;
      external_.erase("socket:[" + std::to_string(entry.usk().ino()) + "]");
    }
  }

  RootActor actor_;
  const CheckpointImages& images_;
  const ImageSource& source_;
  std::vector<std::string>& notes_;
  std::array<UniqueFd, 3> stdio_;
  std::map<std::string, std::size_t, std::less<>> external_;  // index of stdio_ by link
  std::map<std::string, std::vector<Record>, std::less<>> records_;
  std::map<std::string, UniqueFd> kept_;
};

class TableActor : public ProcessActor {
 public:
  TableActor(RestoredProcess& process, std::vector<std::string>& notes)
      : process_(process), notes_(notes) {
    for (const FdinfoEntry& descriptor : descriptors()) {
      numbers_.emplace(KeyOf(descriptor), NumberIn(descriptor));
    }
  }

  int NumberOf(FdTypes type, std::uint32_t id, int prefer) const override {
    const auto [first, last] = numbers_.equal_range({type, id});
    if (first == last) return -1;
    const bool preferred =
        std::any_of(first, last, [&](const auto& n) { return n.second == prefer; });
    return preferred ? prefer : first->second;
  }
  std::span<const FdinfoEntry> descriptors() const override { return process_.image->descriptors; }

  Status EpollAdd(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) override {
    epoll_event event = {.events = events, .data = {.u64 = data}};
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(event));
    return remote()
        .Call("epoll_ctl EPOLL_CTL_ADD", SYS_epoll_ctl, epoll_fd, EPOLL_CTL_ADD, fd, address)
        .status();
  }

  Status AddWatch(int inotify_fd, int watch, const std::string& path, std::uint32_t mask) override {
    RETURN_IF_ERROR(
        remote()
            .Call("INOTIFY_IOC_SETNEXTWD", SYS_ioctl, inotify_fd, INOTIFY_IOC_SETNEXTWD, watch)
            .status());
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Put(path));
    ASSIGN_OR_RETURN(
        const std::uint64_t number,
        remote().Call("watch " + path, SYS_inotify_add_watch, inotify_fd, address, mask));
    if (number == static_cast<std::uint64_t>(watch)) return OkStatus();
    return FailedPrecondition(path + " is what another watch of the checkpoint watches already");
  }

  /// A POSIX lock belongs to the process that takes it.
  Status TakeLock(const image::FileLockEntry& lock) {
    struct flock range = {};
    range.l_type = static_cast<short>(lock.type() == F_WRLCK ? F_WRLCK : F_RDLCK);
    range.l_whence = SEEK_SET;
    range.l_start = lock.start();
    range.l_len = lock.len();
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(range));
    const Status status =
        remote().Call("fcntl F_SETLK", SYS_fcntl, lock.fd(), F_SETLK, address).status();
    if (ErrnoOf(status) == EAGAIN || ErrnoOf(status) == EACCES) {
      return FailedPrecondition(
          "another process has a lock on it that excludes the one to restore");
    }
    return status;
  }

  Status SetOwner(int fd, const FownEntry& owner) override {
    if (owner.pid() != 0) {
      // struct f_owner_ex, whose enumeration takes no strange value.
      const std::array<std::uint32_t, 2> target = {owner.pid_type(), owner.pid()};
      remote().ResetArguments();
      ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(target));
      const Status status =
          remote().Call("fcntl F_SETOWN_EX", SYS_fcntl, fd, F_SETOWN_EX, address).status();
      if (ErrnoOf(status) == ESRCH) {
        notes_.push_back("pid " + std::to_string(process_.image->pid()) + " fd " +
                         std::to_string(fd) + ": the receiver of its signals, " +
                         std::to_string(owner.pid()) + ", is no task of the checkpoint");
        return OkStatus();
      }
      RETURN_IF_ERROR(status);
    }
    if (owner.signum() == 0) return OkStatus();
    return remote().Call("fcntl F_SETSIG", SYS_fcntl, fd, F_SETSIG, owner.signum()).status();
  }

  Status SetForeground(int fd, pid_t group) override {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().PutValue(group));
    const Status status =
        remote().Call("ioctl TIOCSPGRP", SYS_ioctl, fd, TIOCSPGRP, address).status();
    if (ErrnoOf(status) != ENOTTY) return status;
    return FailedPrecondition(
        "the terminal controlled the program's session, and here it does not: restore it from a shell "
        "on that terminal, or in a container with tty: true");
  }

 private:
  RemoteSyscalls& remote() { return *process_.remote; }

  RestoredProcess& process_;
  std::vector<std::string>& notes_;
  std::multimap<FileKey, int> numbers_;
};

// --- All of it ---

class Restorer : public FileRestorer {
 public:
  Restorer(RestoredProcess& root, const CheckpointImages& images, const ImageSource& source)
      : root_(root), images_(images), source_(source) {
    std::vector<const ProcessImage*> processes;
    for (const ProcessImage& process : images.processes) processes.push_back(&process);
    std::ranges::sort(processes, {}, [](const ProcessImage* process) { return process->pid(); });
    for (const ProcessImage* process : processes) {
      for (const FdinfoEntry& descriptor : process->descriptors) {
        holders_.try_emplace(KeyOf(descriptor), Holder{process->pid(), NumberIn(descriptor)});
      }
    }
  }

  Status RestoreAll() override {
    RETURN_IF_ERROR(RaiseOurLimit());
    Context context(root_, images_, source_, notes_);
    RETURN_IF_ERROR(context.TakeStdio());
    for (const auto& [key, holder] : holders_) {
      const FileEntry* entry = images_.File(key.first, key.second);
      if (entry == nullptr) return InvalidArgument(NameOf(holder) + " is not in files.img");
      if (IsOfProcess(*entry)) continue;
      Result<UniqueFd> fd = RestoreFile(*entry, context);
      if (!fd.ok()) return Annotate(fd.status(), NameOf(holder));
      files_[key] = *std::move(fd);
    }
    RETURN_IF_ERROR(OpenNameless(context));
    return context.Finish();
  }

  Result<int> OpenMapped(RestoredProcess& process, std::uint32_t id, int flags) override {
    const auto found = nameless_.find(id);
    if (found == nameless_.end()) return OpenInProcess(process, images_.Path(id), flags);
    const FileEntry* const memfd = images_.File(image::FD_MEMFD, id);
    if (memfd != nullptr) {
      ASSIGN_OR_RETURN(const std::uint32_t seals, SealsOf(*memfd));
      // Else the mapping could become writable, which the seal that is to come forbids.
      if ((seals & F_SEAL_WRITE) != 0) flags = O_RDONLY;
    }
    ASSIGN_OR_RETURN(const UniqueFd fd, Reopen(found->second.get(), flags));
    ASSIGN_OR_RETURN(FdChannel channel, FdChannel::Open(*process.remote, process.pidfd.get()));
    const int ours = fd.get();
    ASSIGN_OR_RETURN(const std::vector<int> numbers,
                     channel.Send(*process.remote, std::span(&ours, 1)));
    RETURN_IF_ERROR(channel.Close(*process.remote));
    return numbers.front();
  }

  Status Install(RestoredProcess& process) override {
    std::vector<int> our_fds;
    for (const FdinfoEntry& descriptor : process.image->descriptors) {
      RETURN_IF_ERROR(OpenOfProcess(process, descriptor));
      const auto found = files_.find(KeyOf(descriptor));
      if (found == files_.end()) return Internal("Install before RestoreAll");
      our_fds.push_back(found->second.get());
    }
    return MakeDescriptorTable(process, our_fds);
  }

  Status Finish(std::vector<RestoredProcess>& processes) override {
    std::map<pid_t, TableActor> actors;
    for (RestoredProcess& process : processes) {
      if (!process.image->zombie) actors.try_emplace(process.image->pid(), process, notes_);
    }
    for (const auto& [key, holder] : holders_) {
      const auto actor = actors.find(holder.pid);
      if (actor == actors.end()) return Internal(NameOf(holder) + ": no such process");
      const FileEntry& entry = *images_.File(key.first, key.second);
      RETURN_IF_ERROR(Annotate(FinishFile(entry, holder.fd, actor->second), NameOf(holder)));
    }
    RETURN_IF_ERROR(TakeLocks(actors));
    RETURN_IF_ERROR(SealAll());
    files_.clear();
    nameless_.clear();
    return OkStatus();
  }

  const std::vector<std::string>& notes() const override { return notes_; }

 private:
  // The first process that has a file, by pid, and its lowest number there.
  struct Holder {
    pid_t pid;
    int fd;
  };

  // A file under /proc/PID of the tree: it shows the process and the memory that were there when it was
  // opened, so it waits for those of the checkpoint.
  bool IsOfProcess(const FileEntry& entry) const {
    std::string_view path = entry.reg().name();
    if (entry.type() != image::FD_REG || !path.starts_with(kProc)) return false;
    path.remove_prefix(kProc.size());
    return std::ranges::any_of(images_.processes, [&](const ProcessImage& process) {
      return path.starts_with(std::to_string(process.pid()) + "/");
    });
  }

  // Opens the file of `descriptor` if it is such a one and `process` the first to have it.
  Status OpenOfProcess(RestoredProcess& process, const FdinfoEntry& descriptor) {
    const FileKey key = KeyOf(descriptor);
    const FileEntry* const entry = images_.File(key.first, key.second);
    if (files_.contains(key) || entry == nullptr || !IsOfProcess(*entry)) return OkStatus();
    const image::RegFileEntry& reg = entry->reg();
    const int flags = OpenFlags(reg.flags()) | O_NOCTTY | O_NONBLOCK;
    ASSIGN_OR_RETURN(const int number, OpenInProcess(process, reg.name(), flags));
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.pidfd.get(), number, 0)));
    if (!fd) {
      return SyscallError(errno, "pidfd_getfd of " + reg.name());
    }
    RETURN_IF_ERROR(process.remote->Call("close", SYS_close, number).status());
    RETURN_IF_ERROR(CheckRegEntry(fd.get(), reg));
    RETURN_IF_ERROR(SetRegState(fd.get(), reg));
    files_[key] = std::move(fd);
    return OkStatus();
  }

  // Opens what is mapped and has no path to be opened by in each process: memfds, deleted files.
  Status OpenNameless(Context& context) {
    for (const ProcessImage& process : images_.processes) {
      for (const image::VmaEntry& vma : process.mm.vmas()) {
        constexpr std::uint32_t kOfFile = 0x40 | 0x80;  // private, shared
        const auto id = static_cast<std::uint32_t>(vma.shmid());
        if ((vma.status() & kOfFile) == 0 || nameless_.contains(id)) continue;
        Result<UniqueFd> fd = OpenIfNameless(id, context);
        if (!fd.ok()) {
          return Annotate(fd.status(), "pid " + std::to_string(process.pid()) + ", mapped file");
        }
        if (*fd) nameless_[id] = *std::move(fd);
      }
    }
    return OkStatus();
  }

  Result<UniqueFd> OpenIfNameless(std::uint32_t id, Context& context) {
    if (const FileEntry* const memfd = images_.File(image::FD_MEMFD, id)) {
      ASSIGN_OR_RETURN(const image::MemfdInodeEntry inode, InodeOf(*memfd));
      // Nameless shared memory, as CRIU dumps it: a memory area's own (restore_layout.h).
      if (inode.name() == "/dev/zero") return UniqueFd();
      return RestoreFile(*memfd, context);
    }
    const FileEntry* const file = images_.File(image::FD_REG, id);
    if (file == nullptr) return UniqueFd();  // for the memory's restore to complain about
    ASSIGN_OR_RETURN(const std::optional<std::uint32_t> ghost, GhostOf(id, context));
    if (!ghost) return UniqueFd();
    return RestoreFile(*file, context);
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

  Status TakeLocks(std::map<pid_t, TableActor>& actors) {
    ASSIGN_OR_RETURN(
        const std::vector<image::FileLockEntry> locks,
        ReadRecords<image::FileLockEntry>(source_, ImageName("filelocks"), "filelocks"));
    for (const image::FileLockEntry& lock : locks) {
      const std::string name = NameOf(Holder{lock.pid(), lock.fd()}) + ", file lock";
      const auto actor = actors.find(lock.pid());
      if (actor == actors.end()) return InvalidArgument(name + ": no such process");
      const auto& descriptors = actor->second.descriptors();
      const auto descriptor = std::ranges::find(descriptors, lock.fd(), NumberIn);
      if (descriptor == descriptors.end()) return InvalidArgument(name + ": no such descriptor");
      if (lock.flag() == kLockPosix) {
        RETURN_IF_ERROR(Annotate(actor->second.TakeLock(lock), name));
      } else if (lock.flag() == kLockFlock || lock.flag() == kLockOpenFile) {
        RETURN_IF_ERROR(
            Annotate(TakeDescriptionLock(files_[KeyOf(*descriptor)].get(), lock), name));
      } else {
        return Unimplemented(name + " of kind " + std::to_string(lock.flag()));
      }
    }
    return OkStatus();
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
    for (const auto& [id, fd] : nameless_) RETURN_IF_ERROR(seal(id, fd));
    return OkStatus();
  }

  // The kinds' errors tell the rest.
  static std::string NameOf(const Holder& holder) {
    return "pid " + std::to_string(holder.pid) + " fd " + std::to_string(holder.fd);
  }

  Status RaiseOurLimit() const {
    rlimit limit = {};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return SyscallError(errno, "getrlimit");
    const std::size_t needed = holders_.size() + kOwnDescriptors;
    if (limit.rlim_max < needed) {
      return ResourceExhausted("the checkpoint has " + std::to_string(holders_.size()) +
                               " open files, our hard limit (RLIMIT_NOFILE) is " +
                               std::to_string(limit.rlim_max) + "; raise it for this program");
    }
    if (limit.rlim_cur == limit.rlim_max) return OkStatus();
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return SyscallError(errno, "setrlimit");
    return OkStatus();
  }

  RestoredProcess& root_;  // only until RestoreAll() has ended
  const CheckpointImages& images_;
  const ImageSource& source_;
  std::map<FileKey, Holder> holders_;
  std::map<FileKey, UniqueFd> files_;
  std::map<std::uint32_t, UniqueFd> nameless_;  // mapped files without a path, by id
  std::vector<std::string> notes_;
};

}  // namespace

std::unique_ptr<FileRestorer> MakeFileRestorer(RestoredProcess& root,
                                               const CheckpointImages& images,
                                               const ImageSource& source) {
  return std::make_unique<Restorer>(root, images, source);
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
