// Source  pidfd_getfd(2), kcmp(2), proc_pid_fd(5), proc_pid_map_files(5); tested on 6.18
// Rule    Descriptors are one open file description exactly when kcmp(2) KCMP_FILE says so; all
//         files of one anonymous inode have the same device and inode. kcmp gives a total order.
// Rule    A link of /proc/PID shows the path from the root of the reader when that reaches it, else
//         from the root of the mount namespace.
#include "engine/dump_files.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_locks.h"
#include "engine/files/memfd.h"
#include "engine/files/socket.h"
#include "engine/files/tcp_segment.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kPipeFs = 0x50495045;

long CompareFiles(int a, int b) {
  const pid_t self = ::getpid();
  return ::syscall(SYS_kcmp, self, self, KCMP_FILE, a, b);
}

Result<std::string> OurLink(int fd) {
  return ReadLinkAt(AT_FDCWD, "/proc/thread-self/fd/" + std::to_string(fd));
}
bool IsPipe(const OpenFile& file) { return S_ISFIFO(file.st.st_mode) && file.fs_magic == kPipeFs; }

Result<std::vector<int>> ListDescriptors(const FrozenProcess& process) {
  std::vector<int> numbers;
  std::error_code error;
  const std::string folder = "/proc/" + std::to_string(process.pid) + "/fd";
  auto entry = std::filesystem::directory_iterator(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    int fd = -1;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    numbers.push_back(fd);
  }
  if (error) return SyscallError(error.value(), "list " + folder);
  std::ranges::sort(numbers);
  return numbers;
}

}  // namespace

// Fills what fstat and fstatfs say of `file.borrowed`.
Status FileDumper::Describe(OpenFile& file) const {
  if (::fstat(file.borrowed.get(), &file.st) != 0) {
    return SyscallError(errno, "fstat " + file.link);
  }
  ids().ShowInside(file.st);
  struct statfs fs = {};
  if (::fstatfs(file.borrowed.get(), &fs) != 0) {
    return SyscallError(errno, "fstatfs " + file.link);
  }
  file.fs_magic = static_cast<std::uint64_t>(fs.f_type);
  return OkStatus();
}

Result<std::string> FileDumper::OurFdinfo(int fd) {
  return ReadFileAt(AT_FDCWD, "/proc/thread-self/fdinfo/" + std::to_string(fd));
}

bool FileDumper::SameFile::operator()(const FileKey& a, const FileKey& b) const {
  const auto cheap = [](const FileKey& key) {
    return std::tuple(key.device, key.inode, key.pos, key.flags);
  };
  if (cheap(a) != cheap(b)) return cheap(a) < cheap(b);
  return CompareFiles(a.borrowed, b.borrowed) == 1;  // 1: less
}

Result<std::unique_ptr<FileDumper>> FileDumper::Create(const FrozenTree& tree,
                                                       const Options& options, Fate fate,
                                                       std::vector<std::string>& notes) {
  std::unique_ptr<FileDumper> dumper(new FileDumper(tree, options, fate, notes));
  RETURN_IF_ERROR(dumper->OpenRoots());
  for (const FrozenProcess& process : tree.processes()) {
    dumper->namespace_pids_[process.pid] = process.ns_pid;
    for (const FrozenThread& thread : process.threads) {
      dumper->namespace_pids_[thread.tid()] = thread.ns_tid();
    }
  }
  return dumper;
}

Status FileDumper::OpenRoots() {
  ASSIGN_OR_RETURN(root_, OpenAt(tree_.root().proc.get(), "root", O_PATH | O_DIRECTORY));
  ASSIGN_OR_RETURN(root_prefix_, ReadLinkAt(tree_.root().proc.get(), "root"));
  if (root_prefix_ == "/") root_prefix_.clear();
  return OkStatus();
}

std::string FileDumper::InRoot(std::string link) const {
  // What lies outside of the root keeps its text; the file kind finds no such path inside.
  if (root_prefix_.empty() || !link.starts_with(root_prefix_)) return link;
  const std::string rest = link.substr(root_prefix_.size());
  if (rest.empty()) return "/";
  return rest.front() == '/' ? rest : link;
}

Status FileDumper::Collect(std::vector<std::uint32_t> table_ids) {
  table_ids_ = std::move(table_ids);
  std::set<std::uint32_t> known = {0};
  const int self = tree_.root().proc.get();
  if (CompareFiles(self, self) != 0) {
    return Unimplemented("this kernel has no kcmp(2) (CONFIG_KCMP)");
  }
  for (const FrozenProcess& process : tree_.processes()) {
    tables_.emplace_back();
    if (!known.insert(table_ids_[tables_.size() - 1]).second) continue;
    RETURN_IF_ERROR(CollectTable(process));
  }
  RETURN_IF_ERROR(CollectPassed());
  return CheckTerminals();
}

// Files that wait in messages, which perhaps no table holds; in them may wait others.
Status FileDumper::CollectPassed() {
  if (only_looks_) return OkStatus();
  for (std::size_t i = 0; i < files_.size(); ++i) {  // it grows
    ASSIGN_OR_RETURN(const std::vector<int> waiting, WaitingIn(files_[i]));
    for (const int fd : waiting) RETURN_IF_ERROR(CollectFromMessage(i, fd));
  }
  return OkStatus();
}

Status FileDumper::CollectFromMessage(std::size_t socket, int fd) {
  if (IdOf(fd).ok()) return OkStatus();
  const OpenFile& receiver = files_[socket];
  OpenFile file;
  file.pid = receiver.pid;
  file.ns_pid = receiver.ns_pid;
  ASSIGN_OR_RETURN(file.link, OurLink(fd));
  file.link = InRoot(std::move(file.link));
  ASSIGN_OR_RETURN(file.fdinfo, OurFdinfo(fd));
  ASSIGN_OR_RETURN(const Fdinfo info, ParseFdinfo(file.fdinfo));
  file.pos = info.pos;
  file.flags = info.flags & ~static_cast<std::uint32_t>(O_CLOEXEC);
  ASSIGN_OR_RETURN(file.borrowed, Duplicate(fd));
  RETURN_IF_ERROR(Describe(file));
  const std::string text = NameOf(file) + ", which waits in a message on " + receiver.link + ": ";
  ASSIGN_OR_RETURN(const std::vector<FileLock> locks, ParseLocks(file.fdinfo));
  if (!locks.empty()) return Unimplemented(text + "its lock cannot be checkpointed yet");
  if (file.fs_magic == PROC_SUPER_MAGIC)
    return Unimplemented(text + "a file of /proc cannot be checkpointed");
  if (IsZeroFile(file.link)) return Unimplemented(text + "shared memory cannot be checkpointed");
  file.id = NewFileId();
  known_.emplace(FileKey{file.st.st_dev, file.st.st_ino, file.pos, file.flags, file.borrowed.get()},
                 files_.size());
  files_.push_back(std::move(file));
  return OkStatus();
}

Result<std::uint32_t> FileDumper::IdOf(int fd) const {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) {
    return SyscallError(errno, "fstat");
  }
  ASSIGN_OR_RETURN(const std::string text, OurFdinfo(fd));
  ASSIGN_OR_RETURN(const Fdinfo info, ParseFdinfo(text));
  const auto known = known_.find(FileKey{st.st_dev, st.st_ino, info.pos,
                                         info.flags & ~static_cast<std::uint32_t>(O_CLOEXEC), fd});
  if (known == known_.end()) return NotFound("a file that waits in a message");
  return files_[known->second].id;
}

Status FileDumper::CollectTable(const FrozenProcess& process) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0)));
  if (!pidfd) {
    return SyscallError(errno, "pidfd_open pid " + std::to_string(process.pid));
  }
  ASSIGN_OR_RETURN(const std::vector<int> numbers, ListDescriptors(process));
  for (const int fd : numbers) {
    RETURN_IF_ERROR(
        Annotate(CollectDescriptor(process, pidfd.get(), fd),
                 "pid " + std::to_string(process.ns_pid) + " fd " + std::to_string(fd)));
  }
  return OkStatus();
}

Status FileDumper::CollectDescriptor(const FrozenProcess& process, int pidfd, int fd) {
  OpenFile file;
  file.pid = process.pid;
  file.ns_pid = process.ns_pid;
  file.fd = fd;
  UniqueFd borrowed(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, fd, 0)));
  if (!borrowed) {
    return SyscallError(errno,
                        errno == EMFILE ? "pidfd_getfd (raise our LimitNOFILE)" : "pidfd_getfd");
  }
  file.borrowed = std::move(borrowed);
  ASSIGN_OR_RETURN(file.fdinfo, ReadFileAt(process.proc.get(), "fdinfo/" + std::to_string(fd)));
  ASSIGN_OR_RETURN(const Fdinfo info, ParseFdinfo(file.fdinfo));
  file.pos = info.pos;
  file.flags = info.flags & ~static_cast<std::uint32_t>(O_CLOEXEC);
  if (::fstat(file.borrowed.get(), &file.st) != 0) {
    return SyscallError(errno, "fstat");
  }
  const FileKey key = {file.st.st_dev, file.st.st_ino, file.pos, file.flags, file.borrowed.get()};
  const auto [known, is_new] = known_.try_emplace(key, files_.size());
  if (is_new) {  // a forked tree has most of its files many times
    ASSIGN_OR_RETURN(file.link, ReadLinkAt(process.proc.get(), "fd/" + std::to_string(fd)));
    file.link = InRoot(std::move(file.link));
    RETURN_IF_ERROR(Describe(file));
  }
  RETURN_IF_ERROR(CollectLocks(file, is_new));
  tables_.back().push_back(
      {.file = known->second, .fd = fd, .close_on_exec = (info.flags & O_CLOEXEC) != 0});
  if (is_new) {
    file.id = NewFileId();
    files_.push_back(std::move(file));
  }
  return OkStatus();
}

// A flock(2) or open file description lock is taken again by the first process that has the file, a
// POSIX lock by the one that holds it: through any descriptor of that inode.
Status FileDumper::CollectLocks(const OpenFile& file, bool is_new) {
  ASSIGN_OR_RETURN(const std::vector<FileLock> locks, ParseLocks(file.fdinfo));
  for (const FileLock& lock : locks) {
    image::FileLockEntry entry;
    switch (lock.kind) {
      case FileLock::Kind::kOther:
        return Unimplemented("(" + file.link + ") a delegation cannot be checkpointed");
      case FileLock::Kind::kPosix:
        if (!locks_.insert({file.pid, file.st.st_dev, file.st.st_ino, lock.start, lock.end}).second)
          continue;
        entry.set_flag(kLockPosix);
        break;
      case FileLock::Kind::kLease:
        if (!is_new) continue;
        leased_.insert({file.st.st_dev, file.st.st_ino});
        if (file.st.st_nlink == 0) {
          return Unimplemented("(" + file.link +
                               ") a lease on a deleted file cannot be checkpointed");
        }
        entry.set_flag(kLockLease);
        break;
      case FileLock::Kind::kFlock:
      case FileLock::Kind::kOpenFile:
        if (!is_new) continue;
        entry.set_flag(lock.kind == FileLock::Kind::kFlock ? kLockFlock : kLockOpenFile);
    }
    entry.set_type(lock.write ? F_WRLCK : F_RDLCK);
    if (lock.breaking) {
      entry.set_type(kLeaseBreaking | (lock.stays_to_read ? F_RDLCK : F_UNLCK));
    }
    entry.set_pid(file.ns_pid);
    entry.set_fd(file.fd);
    entry.set_start(static_cast<std::int64_t>(lock.start));
    const bool whole = lock.end == FileLock::kNoEnd;
    entry.set_len(whole ? 0 : static_cast<std::int64_t>(lock.end - lock.start + 1));
    AddRecord("filelocks", entry.SerializeAsString(), "");
  }
  return OkStatus();
}

Result<image::FileEntry> FileDumper::DumpOne(const OpenFile& file) {
  ASSIGN_OR_RETURN(image::FileEntry entry, DumpFile(file, *this));
  void (*set)(image::FileEntry&, std::uint32_t) = nullptr;
  switch (entry.type()) {
    case image::FD_INETSK:
      set = [](auto& of, auto number) { of.mutable_isk()->set_ns_id(number); };
      break;
    case image::FD_UNIXSK:
      set = [](auto& of, auto number) { of.mutable_usk()->set_ns_id(number); };
      break;
    case image::FD_NETLINKSK:
      set = [](auto& of, auto number) { of.mutable_nlsk()->set_ns_id(number); };
      break;
    case image::FD_TUNF:
      set = [](auto& of, auto number) { of.mutable_tunf()->set_ns_id(number); };
      break;
    case image::FD_PACKETSK:
      set = [](auto& of, auto number) { of.mutable_psk()->set_ns_id(number); };
      break;
    default:
      return entry;
  }
  ASSIGN_OR_RETURN(const std::uint64_t network, NetworkOf(file));
  const std::uint32_t number = NamespaceId(CLONE_NEWNET, network);
  if (number == 0 && namespaces_ != nullptr) {
    return Unimplemented(NameOf(file) +
                         ": a socket of a network namespace that no process of the tree is in");
  }
  set(entry, number);
  return entry;
}

Status FileDumper::DumpAll() {
  for (const OpenFile& file : files_) {
    dumping_ = &file;
    ASSIGN_OR_RETURN(image::FileEntry entry, DumpOne(file));
    dumping_ = nullptr;
    types_.push_back(entry.type());
    AddEntry(std::move(entry));
  }
  return OkStatus();
}

bool FileDumper::HasConnections() const {
  return std::ranges::any_of(entries_, [](const image::FileEntry& entry) {
    const image::InetSkEntry& socket = entry.isk();
    return socket.proto() == IPPROTO_TCP && socket.state() != TCP_LISTEN &&
           socket.state() != TCP_CLOSE;
  });
}

Result<std::optional<NetworkLock>> FileDumper::LockNetwork(const std::string& run_id) const {
  std::vector<ConnectionEnds> connections;
  std::set<std::string> locals;
  UniqueFd ns;
  for (const OpenFile& file : files_) {
    if (connections_.empty() || SocketFamily(file) < 0) continue;
    const int fd = file.borrowed.get();
    if (SocketOption(fd, IPPROTO_TCP, TCP_REPAIR).value_or(0) == 0) continue;
    // Another one than the root's is made again with nobody else in it.
    const Result<std::uint64_t> network = NetworkOf(file);
    if (!network.ok() || !namespaces_->IsOfRoot(CLONE_NEWNET, *network)) continue;
    const Result<InetAddress> local = LocalAddress(fd), remote = RemoteAddress(fd);
    if (!local.ok() || !remote.ok()) continue;  // its peer has not answered yet
    connections.push_back({*local, *remote});
    locals.insert(Unmapped(*local).ToText() + " " + Unmapped(*remote).ToText());
    if (!ns) ns = UniqueFd(::ioctl(fd, SIOCGSKNS));
  }
  std::erase_if(connections, [&](const ConnectionEnds& ends) {
    return locals.contains(Unmapped(ends.remote).ToText() + " " + Unmapped(ends.local).ToText());
  });
  std::optional<NetworkLock> lock;
  if (connections.empty() || !ns) return lock;
  ASSIGN_OR_RETURN(NetworkLock taken, NetworkLock::Take(std::move(ns), run_id, connections));
  lock.emplace(std::move(taken));
  return lock;
}

void FileDumper::AbandonConnections() {
  for (TcpHold& connection : connections_) connection.Abandon();
  connections_.clear();
}

void FileDumper::GiveBack() {
  known_.clear();  // its order needs the descriptors
  found_.clear();
  for (OpenFile& file : files_) {
    file.borrowed.Reset();
    file.waiting.reset();
  }
  root_.Reset();
}

pid_t FileDumper::ToNamespacePid(pid_t pid) const {
  const auto found = namespace_pids_.find(pid);
  return found == namespace_pids_.end() ? 0 : found->second;
}

std::uint32_t FileDumper::NamespaceId(std::uint32_t type, std::uint64_t inode) const {
  return namespaces_ == nullptr ? 0 : namespaces_->NumberOf(type, inode);
}

const UserIds& FileDumper::ids() const {
  return namespaces_ == nullptr ? FileDumpContext::ids() : namespaces_->ids();
}

bool FileDumper::IsOfTree(pid_t ns_pid) const {
  return std::ranges::any_of(tree_.processes(), [&](const FrozenProcess& process) {
    const auto is = [ns_pid](const NamespaceIds& ids) {
      return !ids.empty() && ids.back() == ns_pid;
    };
    return process.ns_pid == ns_pid || is(process.status.ns_pgid) || is(process.status.ns_sid) ||
           std::ranges::any_of(process.threads, [&](const FrozenThread& thread) {
             return thread.ns_tid() == ns_pid;
           });
  });
}

bool FileDumper::IsProcess(pid_t pid) const {
  return std::ranges::find(tree_.processes(), pid, &FrozenProcess::pid) != tree_.processes().end();
}

void FileDumper::AddRecord(std::string_view image_name, std::string record, std::string bytes) {
  auto builder = shared_images_.find(image_name);
  if (builder == shared_images_.end()) {
    // "ghost-file-1f" is of the type "ghost-file", "pipes-data" of its own.
    builder = shared_images_.emplace(image_name, ImageFileBuilder(ImageType(image_name))).first;
  }
  builder->second.AddRecord(record);
  builder->second.AddRaw(bytes);
}

Result<bool> FileDumper::SaveMemoryFile(std::uint64_t id, int fd) {
  if (memory_files_.contains(id)) return false;
  MemoryFile& file = memory_files_[id];
  // Thousands of them are not to need two descriptors each.
  if (dumping_ != nullptr && dumping_->borrowed.get() == fd) {
    file.borrowed = fd;
  } else {
    ASSIGN_OR_RETURN(file.own, Reopen(fd, O_RDONLY));
  }
  return true;
}

bool FileDumper::IsExternalStdio(const OpenFile& file) const {
  if (S_ISCHR(file.st.st_mode)) {
    return std::ranges::any_of(tables_.front(), [&](const Descriptor& descriptor) {
      const struct stat& st = files_[descriptor.file].st;
      return descriptor.fd <= 2 && S_ISCHR(st.st_mode) && st.st_rdev == file.st.st_rdev;
    });
  }
  if (!IsPipe(file)) return false;
  const auto is_end = [&](const OpenFile& other) {
    return IsPipe(other) && other.st.st_ino == file.st.st_ino;
  };
  const bool is_stdio = std::ranges::any_of(tables_.front(), [&](const Descriptor& descriptor) {
    return descriptor.fd <= 2 && is_end(files_[descriptor.file]);
  });
  if (!is_stdio) return false;
  bool read = false, write = false;
  for (const OpenFile& other : files_) {
    if (!is_end(other)) continue;
    const std::uint32_t mode = other.flags & O_ACCMODE;
    read = read || mode != O_WRONLY;
    write = write || mode != O_RDONLY;
  }
  return !(read && write);
}

std::string FileDumper::DescriptorsJson() const {
  std::array<std::string, 3> links = {"/dev/null", "/dev/null", "/dev/null"};
  for (const Descriptor& descriptor : tables_.front()) {
    if (descriptor.fd > 2) continue;
    links[static_cast<std::size_t>(descriptor.fd)] = files_[descriptor.file].link;
  }
  // A path may be no UTF-8, which JSON cannot hold.
  return nlohmann::json(links).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Status FileDumper::WriteImages(ImageSink& sink) const {
  ImageFileBuilder files("files");
  for (const image::FileEntry& entry : entries_) RETURN_IF_ERROR(files.Add(entry));
  RETURN_IF_ERROR(sink.Put(ImageName("files"), files.bytes()));

  for (std::size_t i = 0; i < tables_.size(); ++i) {
    ImageFileBuilder table("fdinfo");
    for (const Descriptor& descriptor : tables_[i]) {
      image::FdinfoEntry entry;
      entry.set_id(files_[descriptor.file].id);
      entry.set_flags(descriptor.close_on_exec ? FD_CLOEXEC : 0);
      entry.set_type(types_[descriptor.file]);
      entry.set_fd(static_cast<std::uint32_t>(descriptor.fd));
      RETURN_IF_ERROR(table.Add(entry));
    }
    if (table.empty()) continue;
    RETURN_IF_ERROR(sink.Put(ImageName("fdinfo", table_ids_[i]), table.bytes()));
  }
  for (const auto& [device, entry] : autofs_) {
    RETURN_IF_ERROR(PutOne(sink, ImageName("autofs", device), "autofs", entry));
  }
  for (const auto& [name, image] : shared_images_) {
    RETURN_IF_ERROR(sink.Put(ImageName(name), image.bytes()));
  }
  return sink.Put("descriptors.json", DescriptorsJson());
}

}  // namespace stasis::engine
