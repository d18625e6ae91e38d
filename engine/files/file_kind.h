// What a kind of open file is to the engine: how it is known, dumped and restored.
// A new kind is one file in this folder, one word in the list below, its message in the schema and its
// test.
#pragma once

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/base/user_ids.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/files.pb.h"
#include "engine/options.h"

namespace stasis::engine {

class TcpHold;             // tcp_hold.h
struct PendingConnection;  // tcp_connection.h

/// One open file description (struct file) of the tree, seen from the dumper.
struct OpenFile {
  std::uint32_t id = 0;        ///< File id in the images.
  pid_t pid = 0;               ///< A process that holds it, as we see it ...
  pid_t ns_pid = 0;            ///< ... and as its own pid namespace does: the one for messages.
  int fd = -1;                 ///< ... and the number there.
  UniqueFd borrowed;           ///< The same open file description in our table, by pidfd_getfd(2).
  std::string link;            ///< Text of /proc/PID/fd/FD, path inside the process's root.
  std::string fdinfo;          ///< Text of /proc/PID/fdinfo/FD.
  struct stat st = {};         ///< Owner and group as in the user namespace of the tree.
  std::uint64_t fs_magic = 0;  ///< statfs f_type
  std::uint32_t flags = 0;     ///< Open flags without O_CLOEXEC.
  std::uint64_t pos = 0;
  std::shared_ptr<const void> waiting = {};  ///< What its kind has read of it beforehand.
};

/// "pid 7 fd 5 (socket:[123])": how messages name a file.
std::string NameOf(const OpenFile& file);

class KeptLinks;

/// All that dumping one file may need to know of the rest. The tree stands still.
class FileDumpContext {
 public:
  virtual ~FileDumpContext() = default;
  virtual const Options& options() const = 0;
  /// True when the tree runs, and nothing of it may change even for a moment: content is not needed, only
  /// whether it could be saved.
  virtual bool only_looks() const = 0;
  /// Every open file of the tree.
  virtual std::span<const OpenFile> files() const = 0;
  /// The id of the tree's file that our descriptor `fd` has open; NotFound when it is none of them.
  virtual Result<std::uint32_t> IdOf(int fd) const = 0;
  /// The directory that the paths of `file`'s links count from: the root of its mount namespace, and of that of its
  /// holder where it is in none of the tree's.
  virtual int RootOf(const OpenFile& file) const = 0;
  /// The mount that `file` is on, where that is in a mount namespace which the tree's root is not in; else -1.
  virtual int OtherMountOf(const OpenFile&) const { return -1; }
  /// `path`, as a link of /proc tells it to us, from the root directory of the tree's root; as it is where it lies
  /// elsewhere.
  virtual std::string InRoot(std::string path) const = 0;
  /// Our pid of a task into the tree's own number; 0 when it is not in the tree.
  virtual pid_t ToNamespacePid(pid_t pid) const = 0;
  /// Is it a process of the tree, not one of its other threads? Our pid.
  virtual bool IsProcess(pid_t pid) const = 0;
  /// Is it, in the tree's own numbers, a task of the tree, or the group or session of one?
  virtual bool IsOfTree(pid_t ns_pid) const = 0;
  /// The number in the images of the tree's namespace of the kind `type` (CLONE_NEW*).
  virtual std::uint32_t NamespaceId(std::uint32_t type, std::uint64_t inode) const = 0;
  /// Users and groups of the tree's user namespace: those that images have.
  virtual const UserIds& ids() const;
  /// A new file id, for entries that no descriptor has (paths of FIFOs).
  virtual std::uint32_t NewFileId() = 0;
  /// Adds an entry to files.img beside the one that Dump returns.
  virtual void AddEntry(image::FileEntry entry) = 0;
  /// Appends one record, and bytes that follow it, to an image file that many kinds' files share
  /// ("pipes-data", "sk-queues", "remap-fpath"; without ".img").
  virtual void AddRecord(std::string_view image_name, std::string record, std::string bytes) = 0;
  /// Saves the content of the memory file (of the kernel's tmpfs) that is open as `fd`, under `id`, its
  /// inode. False when that one is among what is saved already.
  virtual Result<bool> SaveMemoryFile(std::uint64_t id, int fd) = 0;
  /// TCP connections that stand still until the dump has read what it needs or the tree has ended.
  virtual std::vector<TcpHold>& Connections() = 0;
  /// A sentence for the report: what a restore will not bring back.
  virtual void Note(std::string text) = 0;
  /// True for the descriptors 0, 1, 2 of the root that a runtime or caller owns the other end of: a pipe's
  /// of which the tree has one end, and the device, a terminal perhaps, that they are.
  virtual bool IsExternalStdio(const OpenFile& file) const = 0;
  /// Is the other end of the pipe `file` that of an autofs mount which a restore makes again?
  virtual bool IsOfAutofs(const OpenFile&) const { return false; }
  /// What takes the place of inodes without a path, once each: by device and inode the record of the first
  /// file that needs it. A link is made for each mount that is in another mount namespace (see OtherMountOf), else -1.
  using RemapKey = std::tuple<dev_t, ino_t, int>;
  virtual std::map<RemapKey, image::RemapFilePathEntry>& Remaps() = 0;
  /// What a kind has found out about all its files at once, under a key of its own; until the dump ends.
  virtual std::map<std::string, std::shared_ptr<void>, std::less<>>& Found() = 0;
  /// Where to give an inode a name that it keeps until it is restored; null when the tree runs on.
  virtual KeptLinks* kept_links() { return nullptr; }
};

/// Acts with the rights, namespaces and root directory of the process under restore, never with ours:
/// an archive must not reach what the container could not reach itself.
class FileActor {
 public:
  virtual ~FileActor() = default;
  /// openat(2) below its root; the result is in our table.
  virtual Result<UniqueFd> Open(const std::string& path, int flags, unsigned mode) = 0;
  virtual Result<UniqueFd> Socket(int domain, int type, int protocol) = 0;
  virtual Result<std::pair<UniqueFd, UniqueFd>> SocketPair(int domain, int type, int protocol) = 0;
  /// bind(2) of our descriptor `fd` (made by Socket), with its rights and in its file system.
  virtual Status Bind(int fd, std::span<const std::byte> address) = 0;
  virtual Status Connect(int fd, std::span<const std::byte> address) = 0;
  /// setsockopt(2) of our descriptor `fd`: for options that need a right.
  virtual Status SetOption(int fd, int level, int name, std::span<const std::byte> value) = 0;
  virtual Status Unlink(const std::string& path) = 0;
  virtual Status RemoveFolder(const std::string& path) = 0;
  /// mkdir(2) for S_IFDIR in `mode`, else mknod(2).
  virtual Status MakeNode(const std::string& path, unsigned mode, dev_t device) = 0;
  virtual Status MakeSymlink(const std::string& target, const std::string& path) = 0;
  virtual Status SetMode(const std::string& path, unsigned mode) = 0;
  /// Runs `step` in a process of its own that has `pid` in the tree's pid namespace and shares our
  /// descriptors, in the tree's network namespace; it ends with the errno that `step` gives (0: success).
  /// `step` makes system calls only. AlreadyExists: the pid is taken.
  virtual Status AsProcess(pid_t pid, const std::function<int()>& step) = 0;
  /// The pid of the process that acts, in the tree's namespace and in ours.
  virtual std::pair<pid_t, pid_t> Pids() const = 0;
  /// memfd_create(2) of `size_bytes`, with the content that was saved under `id`; filled through its
  /// memory, so that the pages are charged to the container.
  virtual Result<UniqueFd> MemoryFile(const std::string& name, unsigned flags,
                                      std::uint64_t size_bytes, std::uint64_t id,
                                      const ImageSource& source) = 0;
  /// The same of anonymous shared memory, mmap(2), open by /proc/PID/map_files.
  virtual Result<UniqueFd> SharedMemory(std::uint64_t size_bytes, std::uint64_t id,
                                        const ImageSource& source) = 0;
  /// mq_open(2) with mode 0600; `name` has no slash.
  virtual Result<UniqueFd> MessageQueue(const std::string& name, int flags,
                                        std::uint64_t max_messages,
                                        std::uint64_t message_bytes) = 0;
  virtual Status UnlinkQueue(const std::string& name) = 0;
  /// bpf(2) BPF_MAP_CREATE with `attributes`, a bpf_attr.
  virtual Result<UniqueFd> BpfMap(std::span<const std::byte> attributes) = 0;
  /// fanotify_init(2).
  virtual Result<UniqueFd> Fanotify(unsigned flags, unsigned event_flags) = 0;
};

/// All that restoring one file may need. Lives until every file of the tree is restored.
class FileRestoreContext {
 public:
  virtual ~FileRestoreContext() = default;
  virtual const Options& options() const = 0;
  virtual FileActor& actor() = 0;
  /// Users and groups of the user namespace that the tree is in now. What an archive names is of these.
  virtual const UserIds& ids() const;
  /// The entry of files.img with that type and id, or null.
  virtual const image::FileEntry* Entry(image::FdTypes type, std::uint32_t id) const = 0;
  /// Every entry of files.img.
  virtual std::span<const image::FileEntry> entries() const = 0;
  /// The records of a shared image file, with the bytes that follow each.
  struct Record {
    std::string message;
    std::string bytes;
  };
  virtual Result<std::span<const Record>> Records(std::string_view image_name) = 0;
  virtual const ImageSource& source() const = 0;
  /// From here on paths are those of the mount namespace that had the mount `mnt_id` of the images, or that of the root
  /// when none had.
  virtual Status EnterMount(std::int32_t) { return OkStatus(); }
  /// From here on sockets are made in the network namespace `number` of the images; 0: in that of the root.
  virtual Status EnterNetwork(std::uint32_t) { return OkStatus(); }
  /// Our descriptor for file `id`, which is restored; for those that wait in messages.
  virtual Result<int> Restored(std::uint32_t id) = 0;
  /// The descriptor that takes the place of what was `link` ("pipe:[123]") on the root's descriptors 0 to
  /// 2, or -1. Owned by the context.
  virtual int ExternalStdio(std::string_view link) const = 0;
  /// Makes a process with `pid` in the tree's pid namespace that has ended: there until all files are
  /// finished, and gone then. AlreadyExists: the pid is taken.
  virtual Status MakeDead(pid_t pid) = 0;
  /// Descriptors that belong together (two ends of a pipe), kept by kind and key until all are restored.
  virtual std::map<std::string, UniqueFd>& Kept() = 0;
  /// Sockets that let others bind to their port until all are bound; then it is as it was.
  struct SharedPort {
    UniqueFd fd;
    bool reuse_address, reuse_port;
  };
  virtual std::vector<SharedPort>& SharedPorts() = 0;
  /// TCP connections that go on when the tree runs. Outlives this context.
  virtual std::vector<PendingConnection>& Connections() = 0;
  virtual void Note(std::string text) = 0;
};

/// What a kind does in a process that has its final descriptors (epoll's targets). `Syscall` runs there.
class ProcessActor {
 public:
  virtual ~ProcessActor() = default;
  /// The number under which this process holds file `id`, or -1; `prefer` when it is that file too.
  virtual int NumberOf(image::FdTypes type, std::uint32_t id, int prefer) const = 0;
  /// The fdinfo entries of the process.
  virtual std::span<const image::FdinfoEntry> descriptors() const = 0;
  /// epoll_ctl(2) EPOLL_CTL_ADD.
  virtual Status EpollAdd(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) = 0;
  /// inotify_add_watch(2) that gives the number `watch`.
  virtual Status AddWatch(int inotify_fd, int watch, const std::string& path,
                          std::uint32_t mask) = 0;
  /// fanotify_mark(2) FAN_MARK_ADD with `flags`.
  virtual Status AddMark(int fanotify_fd, unsigned flags, std::uint64_t mask,
                         const std::string& path) = 0;
  /// fcntl(2) F_SETOWN_EX with a pid of the tree, and F_SETSIG.
  virtual Status SetOwner(int fd, const image::FownEntry& owner) = 0;
  /// lseek(2) SEEK_SET.
  virtual Status Seek(int fd, std::uint64_t position) = 0;
  /// tcsetpgrp(3) on the process's controlling terminal.
  virtual Status SetForeground(int fd, pid_t group) = 0;
};

struct FileKind {
  const char* name;
  /// Does this kind dump `file`?
  bool (*owns)(const OpenFile& file);
  /// Reads the state of `file` without changing it. Unimplemented, with NameOf(file), for a state that
  /// this kind cannot restore.
  Result<image::FileEntry> (*dump)(const OpenFile& file, FileDumpContext& context);
  /// The type of entries that this kind restores.
  image::FdTypes type;
  /// A descriptor in our table for an open file description as it was.
  Result<UniqueFd> (*restore)(const image::FileEntry& entry, FileRestoreContext& context);
  /// Null, or what is left to do in the first process that holds the file under `fd`.
  Status (*finish)(const image::FileEntry& entry, int fd, ProcessActor& process) = nullptr;
  /// Null, or reads what waits in `file` to be received, and gives the files in it, which perhaps nobody else
  /// holds; `file` keeps them open.
  Result<std::vector<int>> (*waiting)(OpenFile& file) = nullptr;
  /// Null, or what is left to do once every file is restored, in any process.
  Status (*complete)(FileRestoreContext& context) = nullptr;
};

// The first that owns a file dumps it: a memfd looks like a deleted file.
#define STASIS_FILE_KINDS(X) \
  X(kTerminal)               \
  X(kMemfd)                  \
  X(kTun)                    \
  X(kRegularFile)            \
  X(kPipe)                   \
  X(kFifo)                   \
  X(kEventfd)                \
  X(kTimerfd)                \
  X(kSignalfd)               \
  X(kEpoll)                  \
  X(kInotify)                \
  X(kFanotify)               \
  X(kPidfd)                  \
  X(kBpfMap)                 \
  X(kIoUring)                \
  X(kNamespaceFile)          \
  X(kInetSocket)             \
  X(kUnixSocket)             \
  X(kNetlinkSocket)          \
  X(kPacketSocket)

#define STASIS_DECLARE_KIND(kind) extern const FileKind kind;
STASIS_FILE_KINDS(STASIS_DECLARE_KIND)
#undef STASIS_DECLARE_KIND

/// The entry of `file` by the kind that owns it; Unimplemented with its name when none does.
Result<image::FileEntry> DumpFile(const OpenFile& file, FileDumpContext& context);
/// Unimplemented for a type that no kind restores.
Result<UniqueFd> RestoreFile(const image::FileEntry& entry, FileRestoreContext& context);
Status FinishFile(const image::FileEntry& entry, int fd, ProcessActor& process);
/// Reads what waits in `file` to be received; the files in it, which `file` keeps open.
Result<std::vector<int>> WaitingIn(OpenFile& file);
/// The last step of all kinds, once every file of the images is restored.
Status CompleteFiles(FileRestoreContext& context);

}  // namespace stasis::engine
