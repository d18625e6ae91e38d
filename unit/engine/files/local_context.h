// The contexts and actors of file kinds for tests: everything happens in the test's own process.
#pragma once

#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/files/file_kind.h"
#include "engine/files/tcp_connection.h"
#include "engine/files/tcp_hold.h"
#include "engine/image/image_file.h"
#include "engine/proc/fdinfo.h"
#include "unit/support/matchers.h"

namespace stasis::engine {

/// What the dumper would know of our descriptor `fd`.
inline OpenFile Describe(int fd, std::uint32_t id) {
  OpenFile file;
  file.id = id;
  file.pid = file.ns_pid = ::getpid();
  file.fd = fd;
  file.borrowed = UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  const std::string number = std::to_string(fd);
  file.link = ReadLinkAt(AT_FDCWD, "/proc/self/fd/" + number).value_or("");
  file.fdinfo = ReadFileAt(AT_FDCWD, "/proc/self/fdinfo/" + number).value_or("");
  EXPECT_EQ(::fstat(fd, &file.st), 0);
  struct statfs fs = {};
  EXPECT_EQ(::fstatfs(fd, &fs), 0);
  file.fs_magic = static_cast<std::uint64_t>(fs.f_type);
  const Result<Fdinfo> info = ParseFdinfo(file.fdinfo);
  EXPECT_THAT(info, stasis::testing::IsOk());
  file.flags = info.ok() ? info->flags & ~static_cast<std::uint32_t>(O_CLOEXEC) : 0;
  file.pos = info.ok() ? info->pos : 0;
  return file;
}

/// The image files of one dump, in memory.
class LocalImages : public ImageSource {
 public:
  std::map<std::string, ImageFileBuilder, std::less<>> files;

  void Add(std::string_view name, std::string_view record, std::string_view bytes) {
    const auto [file, is_new] =
        files.try_emplace(std::string(name) + ".img", ImageFileBuilder(ImageType(name)));
    file->second.AddRecord(record);
    file->second.AddRaw(bytes);
  }

  std::vector<std::string> Names() const override { return {}; }
  Result<std::uint64_t> Size(std::string_view name) const override {
    const auto file = files.find(name);
    if (file == files.end()) return NotFound(name);
    return file->second.bytes().size();
  }
  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    std::memcpy(bytes.data(), files.find(name)->second.bytes().data() + offset, bytes.size());
    return OkStatus();
  }
};

class LocalDumpContext : public FileDumpContext {
 public:
  Options chosen;
  const Options& options() const override { return chosen; }
  bool only_looks() const override { return looks; }
  bool looks = false;
  LocalDumpContext() : root_(::open("/", O_PATH | O_CLOEXEC)) {}

  /// Makes `fd` an open file of the tree; its id.
  std::uint32_t Add(int fd) {
    files_.push_back(Describe(fd, next_id_));
    return next_id_++;
  }
  /// Dumps every file of the tree, and those that wait in messages; the first error ends it.
  Status DumpAll() {
    for (std::size_t i = 0; i < files_.size(); ++i) {
      const Result<std::vector<int>> waiting = WaitingIn(files_[i]);
      if (!waiting.ok()) return waiting.status();
      for (const int fd : *waiting) {
        if (!IdOf(fd).ok()) Add(fd);
      }
    }
    for (const OpenFile& file : files_) {
      Result<image::FileEntry> entry = DumpFile(file, *this);
      if (!entry.ok()) return entry.status();
      EXPECT_TRUE(entry->IsInitialized()) << entry->InitializationErrorString();
      entries.push_back(*std::move(entry));
    }
    return OkStatus();
  }

  /// Closes what the dump borrowed, as at its end.
  void Forget() { files_.clear(); }

  std::vector<image::FileEntry> entries;
  LocalImages images;
  std::vector<std::string> notes;
  std::set<std::uint64_t> memory_files;
  std::string external;  ///< Link of what counts as standard input or output.

  std::span<const OpenFile> files() const override { return files_; }
  Result<std::uint32_t> IdOf(int fd) const override {
    constexpr int kKcmpFile = 0;
    for (const OpenFile& file : files_) {
      const pid_t self = ::getpid();
      if (::syscall(SYS_kcmp, self, self, kKcmpFile, fd, file.borrowed.get()) == 0) return file.id;
    }
    return NotFound("no such file");
  }
  int RootOf(const OpenFile&) const override { return root_.get(); }
  std::string InRoot(std::string path) const override { return path; }
  pid_t ToNamespacePid(pid_t pid) const override { return pid == ::getpid() ? pid : 0; }
  bool IsProcess(pid_t pid) const override { return pid == ::getpid(); }
  bool IsOfTree(pid_t ns_pid) const override { return ns_pid == ::getpid(); }
  std::uint32_t NamespaceId(std::uint32_t, std::uint64_t) const override { return 1; }
  std::uint32_t NewFileId() override { return next_id_++; }
  void AddEntry(image::FileEntry entry) override { entries.push_back(std::move(entry)); }
  void AddRecord(std::string_view image_name, std::string record, std::string bytes) override {
    images.Add(image_name, record, bytes);
  }
  Result<bool> SaveMemoryFile(std::uint64_t id, int) override {
    return memory_files.insert(id).second;
  }
  std::vector<TcpHold> connections;
  std::vector<TcpHold>& Connections() override { return connections; }
  void Note(std::string text) override { notes.push_back(std::move(text)); }
  bool IsExternalStdio(const OpenFile& file) const override { return file.link == external; }
  std::map<RemapKey, image::RemapFilePathEntry>& Remaps() override { return remaps_; }
  std::map<std::string, std::shared_ptr<void>, std::less<>> found;
  std::map<std::string, std::shared_ptr<void>, std::less<>>& Found() override { return found; }
  KeptLinks* kept_links() override { return links; }
  KeptLinks* links = nullptr;

 private:
  std::map<RemapKey, image::RemapFilePathEntry> remaps_;
  UniqueFd root_;
  std::vector<OpenFile> files_;
  std::uint32_t next_id_ = 1;
};

class LocalFileActor : public FileActor {
 public:
  Result<UniqueFd> Open(const std::string& path, int flags, unsigned mode) override {
    return OpenAt(AT_FDCWD, path, flags, mode);
  }
  Result<UniqueFd> Fanotify(unsigned flags, unsigned event_flags) override {
    UniqueFd fd(::fanotify_init(flags, event_flags));
    if (!fd) return SyscallError(errno, "fanotify_init");
    return fd;
  }
  Result<UniqueFd> Socket(int domain, int type, int protocol) override {
    UniqueFd fd(::socket(domain, type | SOCK_CLOEXEC, protocol));
    if (!fd) return SyscallError(errno, "socket");
    return fd;
  }
  Result<std::pair<UniqueFd, UniqueFd>> SocketPair(int domain, int type, int protocol) override {
    int ends[2];
    if (::socketpair(domain, type | SOCK_CLOEXEC, protocol, ends) != 0) {
      return SyscallError(errno, "socketpair");
    }
    return std::pair(UniqueFd(ends[0]), UniqueFd(ends[1]));
  }
  Status Bind(int fd, std::span<const std::byte> address) override {
    return Check(::bind(fd, reinterpret_cast<const sockaddr*>(address.data()),
                        static_cast<socklen_t>(address.size())),
                 "bind");
  }
  Status Connect(int fd, std::span<const std::byte> address) override {
    return Check(::connect(fd, reinterpret_cast<const sockaddr*>(address.data()),
                           static_cast<socklen_t>(address.size())),
                 "connect");
  }
  Status SetOption(int fd, int level, int name, std::span<const std::byte> value) override {
    return Check(::setsockopt(fd, level, name, value.data(), static_cast<socklen_t>(value.size())),
                 "setsockopt");
  }
  /// Without content.
  Result<UniqueFd> MemoryFile(const std::string& name, unsigned flags, std::uint64_t size_bytes,
                              std::uint64_t, const ImageSource&) override {
    UniqueFd fd(::memfd_create(name.c_str(), flags | MFD_CLOEXEC));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
      return SyscallError(errno, "memfd_create");
    }
    return fd;
  }
  Result<UniqueFd> SharedMemory(std::uint64_t, std::uint64_t, const ImageSource&) override {
    return Unimplemented("no shared memory without a process");
  }
  Result<UniqueFd> BpfMap(std::span<const std::byte>) override {
    return Unimplemented("no BPF maps without a process");
  }
  Result<UniqueFd> MessageQueue(const std::string& name, int flags, std::uint64_t max_messages,
                                std::uint64_t message_bytes) override {
    mq_attr limits = {};
    limits.mq_maxmsg = static_cast<long>(max_messages);
    limits.mq_msgsize = static_cast<long>(message_bytes);
    UniqueFd fd(::mq_open(("/" + name).c_str(), flags | O_CLOEXEC, 0600, &limits));
    if (!fd) return SyscallError(errno, "mq_open");
    return fd;
  }
  Status UnlinkQueue(const std::string& name) override {
    return Check(::mq_unlink(("/" + name).c_str()), name);
  }
  Status Unlink(const std::string& path) override { return Check(::unlink(path.c_str()), path); }
  Status RemoveFolder(const std::string& path) override {
    return Check(::rmdir(path.c_str()), path);
  }
  Status MakeNode(const std::string& path, unsigned mode, dev_t device) override {
    if (S_ISDIR(mode)) return Check(::mkdir(path.c_str(), mode & 07777), path);
    return Check(::mknod(path.c_str(), mode, device), path);
  }
  Status MakeSymlink(const std::string& target, const std::string& path) override {
    return Check(::symlink(target.c_str(), path.c_str()), path);
  }
  Status SetMode(const std::string& path, unsigned mode) override {
    return Check(::chmod(path.c_str(), mode), path);
  }
  /// In a child, whatever its pid.
  Status AsProcess(pid_t, const std::function<int()>& step) override {
    const long child = ::syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, 0);
    if (child == 0) ::_exit(step());
    int status = 0;
    ::waitpid(static_cast<pid_t>(child), &status, 0);
    return status == 0 ? OkStatus() : SyscallError(WEXITSTATUS(status), "as another process");
  }
  std::pair<pid_t, pid_t> Pids() const override { return {::getpid(), ::getpid()}; }

 private:
  static Status Check(int result, std::string_view what) {
    return result == 0 ? OkStatus() : SyscallError(errno, what);
  }
};

/// Restores what `dumped` has.
class LocalRestoreContext : public FileRestoreContext {
 public:
  Options chosen;
  const Options& options() const override { return chosen; }
  explicit LocalRestoreContext(LocalDumpContext& dumped, FileActor* actor = nullptr)
      : dumped_(dumped), actor_(actor == nullptr ? local_ : *actor) {}

  /// The file that was added to the dump with `id`.
  Result<UniqueFd> Restore(std::uint32_t id) {
    Result<UniqueFd> fd = NotFound("no such id");
    for (const image::FileEntry& entry : dumped_.entries) {
      if (entry.id() == id) fd = RestoreFile(entry, *this);
    }
    if (!fd.ok()) return fd;
    given_[id] = fd->get();  // which may be all that there is of it
    if (const Status status = CompleteFiles(*this); !status.ok()) return status;
    return fd;
  }
  Result<int> Restored(std::uint32_t id) override {
    if (const auto given = given_.find(id); given != given_.end()) return given->second;
    for (const image::FileEntry& entry : dumped_.entries) {
      if (entry.id() != id || passed_.contains(id)) continue;
      ASSIGN_OR_RETURN(passed_[id], RestoreFile(entry, *this));
    }
    return passed_[id].get();
  }

  std::vector<std::string> notes;
  int external = -1;

  FileActor& actor() override { return actor_; }
  const image::FileEntry* Entry(image::FdTypes type, std::uint32_t id) const override {
    for (const image::FileEntry& entry : dumped_.entries) {
      if (entry.type() == type && entry.id() == id) return &entry;
    }
    return nullptr;
  }
  std::span<const image::FileEntry> entries() const override { return dumped_.entries; }
  Result<std::span<const Record>> Records(std::string_view image_name) override {
    const std::string name(image_name);
    ASSIGN_OR_RETURN(const std::vector<ImageRecord> read,
                     ReadImageRecords(dumped_.images, name + ".img", name));
    std::vector<Record>& records = records_[name];
    records.clear();
    for (const ImageRecord& record : read) records.push_back({record.message, record.bytes});
    return std::span<const Record>(records);
  }
  const ImageSource& source() const override { return dumped_.images; }
  int ExternalStdio(std::string_view link) const override {
    return link == dumped_.external ? external : -1;
  }
  Status MakeDead(pid_t) override { return Unimplemented("no dead process without a tree"); }
  std::map<std::string, UniqueFd>& Kept() override { return kept_; }
  std::vector<SharedPort> shared_ports;
  std::vector<SharedPort>& SharedPorts() override { return shared_ports; }
  std::vector<PendingConnection> connections;
  std::vector<PendingConnection>& Connections() override { return connections; }
  void Note(std::string text) override { notes.push_back(std::move(text)); }

  /// As at the end of a restore: what was kept for others is closed.
  void Finish() {
    kept_.clear();
    passed_.clear();
  }

 private:
  LocalDumpContext& dumped_;
  LocalFileActor local_;
  FileActor& actor_;
  std::map<std::string, UniqueFd> kept_;
  std::map<std::uint32_t, int> given_;  // the test's
  std::map<std::uint32_t, UniqueFd> passed_;
  std::map<std::string, std::vector<Record>> records_;
};

/// A process whose descriptors are the test's own.
class LocalProcessActor : public ProcessActor {
 public:
  std::vector<image::FdinfoEntry> table;

  int NumberOf(image::FdTypes type, std::uint32_t id, int prefer) const override {
    int found = -1;
    for (const image::FdinfoEntry& entry : table) {
      if (entry.type() != type || entry.id() != id) continue;
      found = static_cast<int>(entry.fd());
      if (found == prefer) break;
    }
    return found;
  }
  std::span<const image::FdinfoEntry> descriptors() const override { return table; }
  Status EpollAdd(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) override {
    epoll_event event = {.events = events, .data = {.u64 = data}};
    if (::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
      return SyscallError(errno, "epoll_ctl");
    }
    return OkStatus();
  }
  Status AddWatch(int inotify_fd, int watch, const std::string& path, std::uint32_t mask) override {
    if (::ioctl(inotify_fd, _IOW('I', 0, std::int32_t), watch) != 0) {
      return SyscallError(errno, "INOTIFY_IOC_SETNEXTWD");
    }
    const int number = ::inotify_add_watch(inotify_fd, path.c_str(), mask);
    if (number < 0) return SyscallError(errno, "watch " + path);
    EXPECT_EQ(number, watch);
    return OkStatus();
  }
  Status Seek(int fd, std::uint64_t position) override {
    return ::lseek(fd, static_cast<off_t>(position), SEEK_SET) < 0 ? SyscallError(errno, "lseek")
                                                                   : OkStatus();
  }
  Status AddMark(int fanotify_fd, unsigned flags, std::uint64_t mask,
                 const std::string& path) override {
    if (::fanotify_mark(fanotify_fd, flags | FAN_MARK_ADD, mask, AT_FDCWD, path.c_str()) != 0) {
      return SyscallError(errno, "mark " + path);
    }
    return OkStatus();
  }
  Status SetOwner(int fd, const image::FownEntry& owner) override {
    const f_owner_ex target = {.type = static_cast<__pid_type>(owner.pid_type()),
                               .pid = static_cast<pid_t>(owner.pid())};
    if (::fcntl(fd, F_SETOWN_EX, &target) != 0) return SyscallError(errno, "F_SETOWN_EX");
    if (::fcntl(fd, F_SETSIG, static_cast<int>(owner.signum())) != 0) {
      return SyscallError(errno, "F_SETSIG");
    }
    return OkStatus();
  }
  Status SetForeground(int fd, pid_t group) override {
    return ::tcsetpgrp(fd, group) == 0 ? OkStatus() : SyscallError(errno, "tcsetpgrp");
  }
};

/// A descriptor that is closed by its test.
inline UniqueFd Fd(int number) {
  EXPECT_GE(number, 0) << std::strerror(errno);
  return UniqueFd(number);
}

inline std::string ReadSome(int fd) {
  std::string text(65536, '\0');
  const ssize_t got = ::read(fd, text.data(), text.size());
  text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return text;
}

/// Dumps `fd` alone and restores it: the usual test of a kind.
class RoundTrip {
 public:
  explicit RoundTrip(int fd) : restore(dump) {
    const std::uint32_t id = dump.Add(fd);
    status = dump.DumpAll();
    if (!status.ok()) return;
    Result<UniqueFd> result = restore.Restore(id);
    status = result.status();
    if (result.ok()) restored = *std::move(result);
    restore.Finish();
  }

  LocalDumpContext dump;
  LocalRestoreContext restore;
  Status status;
  UniqueFd restored;
};

}  // namespace stasis::engine
