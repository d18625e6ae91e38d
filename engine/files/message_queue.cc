// State    attributes by mq_getattr(3); name, owner and mode as of any file; read(2) of a queue tells the bytes
//          in it and who waits for a signal (NOTIFY_PID)
// Dump     nothing shows a message but its receiver: all are received and sent again, in the order in which
//          they came out, which is that of a queue. The tree stands still meanwhile, nobody outside may have
//          such a queue open, and a kill of ours does not come in between (surviving_step.h)
// Image    FD_REG below /dev/mqueue, which is what CRIU opens again; content is a field of ours
// Restore  mq_open(2) by the tree's root, in its IPC namespace and charged to its limits. A queue that is there
//          already stays as it is: on the host it outlives the tree, in a pod it is another container's
// Lost     what was registered by mq_notify(3): its value is not shown, so it is refused
// Source   mq_overview(7), ipc/mqueue.c, fsopen(2); tested on 6.18
#include "engine/files/message_queue.h"

#include <dirent.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <set>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/base/surviving_step.h"
#include "engine/files/description.h"
#include "engine/files/holder_outside.h"
#include "engine/files/path.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kMqueueMagic = 0x19800202;  // ipc/mqueue.c
constexpr std::string_view kFolder = "/dev/mqueue/";
constexpr std::size_t kMostBytes = std::size_t{16} << 20;
constexpr std::size_t kMostMessages = 65536;  // HARD_MSGMAX in include/linux/ipc_namespace.h
constexpr timespec kNow = {};                 // long ago: mq_timedsend(3) then does not wait

using image::StasisQueueEntry;

// ---- dump ----

struct QueueState {
  mq_attr attributes = {};
  std::size_t bytes = 0;
  pid_t notified = 0;  // whom mq_notify(3) registered; 0: nobody
};

// "QSIZE:129        NOTIFY:2    SIGNO:0    NOTIFY_PID:8260  "
Result<QueueState> ReadState(int fd) {
  QueueState state;
  if (::mq_getattr(fd, &state.attributes) != 0) return SyscallError(errno, "mq_getattr");
  ASSIGN_OR_RETURN(const std::string line, ReadFd(fd));
  for (std::string_view word : text::Words(text::Trim(line))) {
    const std::string_view key = text::Cut(word, ':');
    if (key == "QSIZE") {
      ASSIGN_OR_RETURN(state.bytes, text::Number<std::size_t>(word));
    }
    if (key == "NOTIFY_PID") {
      ASSIGN_OR_RETURN(state.notified, text::Number<pid_t>(word));
    }
  }
  return state;
}

// All messages of a queue in the order in which they are received.
struct Taken {
  std::vector<char> bytes;
  std::vector<std::size_t> sizes;
  std::vector<unsigned> priorities;
  std::size_t count = 0, end = 0;

  Taken(std::size_t total, std::size_t longest, std::size_t messages)
      : bytes(total + longest), sizes(messages), priorities(messages) {}

  // Makes system calls only.
  int TakeAndPutBack(mqd_t queue, std::size_t longest) {
    int error = 0;
    while (count < sizes.size() && error == 0) {
      const ssize_t size =
          ::mq_timedreceive(queue, bytes.data() + end, longest, &priorities[count], &kNow);
      if (size < 0) {
        error = errno;
        continue;
      }
      sizes[count++] = static_cast<std::size_t>(size);
      end += static_cast<std::size_t>(size);
    }
    std::size_t at = 0;
    for (std::size_t i = 0; i < count; at += sizes[i++]) {
      while (::mq_timedsend(queue, bytes.data() + at, sizes[i], priorities[i], &kNow) != 0) {
        if (errno != ENOMEM && errno != EINTR)
          return errno;  // short of memory: until there is some
      }
    }
    return error;
  }
};

// Fills `entry` with the messages of the queue that is open as `fd`.
Status ReadMessages(int fd, const QueueState& state, StasisQueueEntry& entry) {
  const auto count = static_cast<std::size_t>(state.attributes.mq_curmsgs);
  const auto longest = static_cast<std::size_t>(state.attributes.mq_msgsize);
  Taken taken(state.bytes, longest, count);
  RETURN_IF_ERROR(SurvivingStep("receive and send again what waits in the queue",
                                [&] { return taken.TakeAndPutBack(fd, longest); }));
  std::size_t at = 0;
  for (std::size_t i = 0; i < count; at += taken.sizes[i++]) {
    image::StasisQueueMessage& message = *entry.add_messages();
    message.set_priority(taken.priorities[i]);
    message.set_content(std::string(taken.bytes.data() + at, taken.sizes[i]));
  }
  return OkStatus();
}

// Of the queue that `fd` has open for reading and writing, O_NONBLOCK; `name` is for messages.
Result<StasisQueueEntry> ReadQueue(int fd, const std::string& name, FileDumpContext& context) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) return SyscallError(errno, "stat " + name);
  context.ids().ShowInside(st);
  const Result<QueueState> state = ReadState(fd);
  if (!state.ok()) return Annotate(state.status(), name);
  if (state->notified != 0) {
    return Unimplemented(name + ": pid " + std::to_string(state->notified) +
                         " is to be told of a message (mq_notify), which cannot be checkpointed");
  }
  StasisQueueEntry entry;
  entry.set_inode(st.st_ino);
  entry.set_unlinked(st.st_nlink == 0);
  entry.set_uid(st.st_uid);
  entry.set_gid(st.st_gid);
  entry.set_mode(st.st_mode & 0777);
  entry.set_max_messages(static_cast<std::uint64_t>(state->attributes.mq_maxmsg));
  entry.set_message_bytes(static_cast<std::uint64_t>(state->attributes.mq_msgsize));
  if (state->attributes.mq_curmsgs == 0) return entry;
  const auto longest = static_cast<std::size_t>(state->attributes.mq_msgsize);
  if (state->bytes > kMostBytes || longest > kMostBytes) {
    return Unimplemented(name + ": a message queue of more than 16 MiB");
  }
  ASSIGN_OR_RETURN(const pid_t holder, HolderOutside(context, [&st](const auto& link) {
                     struct stat other = {};
                     return ::stat(link.c_str(), &other) == 0 && other.st_dev == st.st_dev &&
                            other.st_ino == st.st_ino;
                   }));
  if (holder != 0) {
    return Unimplemented(name + ": messages wait in it, and pid " + std::to_string(holder) +
                         " outside the tree has it open; let one of them read these, or end that");
  }
  if (!context.only_looks()) {
    RETURN_IF_ERROR(Annotate(ReadMessages(fd, *state, entry), name));
  }
  return entry;
}

bool IsFirstOfItsQueue(const OpenFile& file, const FileDumpContext& context) {
  const auto first = std::ranges::find_if(context.files(), [&](const OpenFile& other) {
    return IsMessageQueue(other) && other.st.st_dev == file.st.st_dev &&
           other.st.st_ino == file.st.st_ino;
  });
  return first == context.files().end() || first->id == file.id;
}

std::string PlainName(const OpenFile& file) {
  constexpr std::string_view kDeleted = " (deleted)";
  std::string_view name = file.link;
  if (file.st.st_nlink == 0 && name.ends_with(kDeleted)) name.remove_suffix(kDeleted.size());
  return std::string(name.substr(name.rfind('/') + 1));
}

// The file system of the calling thread's IPC namespace, wherever it is mounted.
Result<UniqueFd> OpenFileSystem() {
  const UniqueFd context(::fsopen("mqueue", FSOPEN_CLOEXEC));
  if (!context || ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return SyscallError(errno, "open the file system of message queues");
  }
  UniqueFd mount(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!mount) return SyscallError(errno, "mount message queues");
  return OpenAt(mount.get(), ".", O_RDONLY | O_DIRECTORY);
}

Result<std::vector<std::string>> NamesIn(int folder) {
  ASSIGN_OR_RETURN(UniqueFd copy, OpenAt(folder, ".", O_RDONLY | O_DIRECTORY));
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(copy.get()), ::closedir);
  if (!entries) return SyscallError(errno, "list message queues");
  (void)copy.Release();  // closedir(3) closes it
  std::vector<std::string> names;
  while (const dirent* const entry = ::readdir(entries.get())) {
    if (entry->d_name[0] != '.' || entry->d_type == DT_REG) names.emplace_back(entry->d_name);
  }
  return names;
}

Result<image::FileEntry> DumpIdleQueue(int fd, const std::string& name, FileDumpContext& context) {
  image::FileEntry entry;
  entry.set_type(image::FD_REG);
  entry.set_id(context.NewFileId());
  image::RegFileEntry& reg = *entry.mutable_reg();
  reg.set_id(entry.id());
  reg.set_flags(O_RDWR);
  reg.set_pos(0);
  reg.set_name(std::string(kFolder) + name);
  image::FownEntry& owner = *reg.mutable_fown();
  owner.set_uid(0);
  owner.set_euid(0);
  owner.set_signum(0);
  owner.set_pid_type(0);
  owner.set_pid(0);
  ASSIGN_OR_RETURN(*entry.mutable_stasis_queue(),
                   ReadQueue(fd, "the message queue /" + name, context));
  return entry;
}

// ---- restore ----

std::string Key(const StasisQueueEntry& queue) { return KeptKey("mqueue", queue.inode()); }

std::string NameIn(const image::FileEntry& entry) {
  const std::string& path = entry.reg().name();
  return path.substr(path.rfind('/') + 1);
}

Status CheckEntry(const image::FileEntry& entry) {
  const StasisQueueEntry& queue = entry.stasis_queue();
  const std::string name = NameIn(entry);
  if (name.empty() || name == "." || name == ".." || name.size() > NAME_MAX) {
    return InvalidArgument("\"" + entry.reg().name() + "\" is no name of a message queue");
  }
  if (queue.max_messages() == 0 || queue.max_messages() > kMostMessages ||
      queue.message_bytes() == 0 || queue.message_bytes() > kMostBytes) {
    return InvalidArgument("message queue /" + name + ": attributes out of range");
  }
  return OkStatus();
}

// As mq_open(2) says it; the next step, where somebody can take one.
Status Explain(const Status& status, const std::string& name) {
  switch (ErrnoOf(status)) {
    case EINVAL:
      return FailedPrecondition("message queue /" + name +
                                " had more or longer messages than are allowed here: raise "
                                "fs.mqueue.msg_max and fs.mqueue.msgsize_max");
    case EMFILE:
      return ResourceExhausted("message queue /" + name +
                               ": no room below RLIMIT_MSGQUEUE (ulimit -q); raise it");
    case ENOSPC:
      return ResourceExhausted("message queue /" + name + ": raise fs.mqueue.queues_max");
    default:
      return Annotate(status, "message queue /" + name);
  }
}

Status Fill(int fd, const StasisQueueEntry& queue, const std::string& name, const UserIds& ids) {
  RETURN_IF_ERROR(
      Annotate(ChangeOwner(fd, queue.uid(), queue.gid(), ids), "message queue /" + name));
  if (::fchmod(fd, queue.mode() & 0777) != 0) {
    return SyscallError(errno, "the mode of message queue /" + name);
  }
  for (const image::StasisQueueMessage& message : queue.messages()) {
    const std::string& content = message.content();
    if (::mq_timedsend(fd, content.data(), content.size(), message.priority(), &kNow) == 0) {
      continue;
    }
    if (errno == ETIMEDOUT || errno == EMSGSIZE) {
      return DataLoss("message queue /" + name + ": more or longer messages than fit into it");
    }
    return SyscallError(errno, "send to message queue /" + name);
  }
  return OkStatus();
}

// Another container's, or what the tree left when it ended.
Status CheckThere(int fd, const StasisQueueEntry& queue, const std::string& name,
                  FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const QueueState there, ReadState(fd));
  if (static_cast<std::uint64_t>(there.attributes.mq_maxmsg) != queue.max_messages() ||
      static_cast<std::uint64_t>(there.attributes.mq_msgsize) != queue.message_bytes()) {
    return AlreadyExists("message queue /" + name +
                         " is another one here, with other limits; remove it (mq_unlink)");
  }
  std::size_t bytes = 0;
  for (const image::StasisQueueMessage& message : queue.messages())
    bytes += message.content().size();
  if (there.attributes.mq_curmsgs != queue.messages_size() || there.bytes != bytes) {
    context.Note("message queue /" + name + " was there already and has the messages of now");
  }
  return OkStatus();
}

Result<UniqueFd> Make(const image::FileEntry& entry, FileRestoreContext& context) {
  RETURN_IF_ERROR(CheckEntry(entry));
  const StasisQueueEntry& queue = entry.stasis_queue();
  const std::string name = NameIn(entry);
  const auto open = [&](const std::string& as, int how) {
    return context.actor().MessageQueue(as, how | O_RDWR | O_NONBLOCK, queue.max_messages(),
                                        queue.message_bytes());
  };
  if (queue.unlinked()) {
    const std::string temporary = ".stasis-" + std::to_string(queue.inode());
    Result<UniqueFd> fd = open(temporary, O_CREAT | O_EXCL);
    if (!fd.ok()) return Explain(fd.status(), name);
    RETURN_IF_ERROR(context.actor().UnlinkQueue(temporary));
    RETURN_IF_ERROR(Fill(fd->get(), queue, name, context.ids()));
    return fd;
  }
  Result<UniqueFd> fd = open(name, O_CREAT | O_EXCL);
  if (fd.ok()) {
    RETURN_IF_ERROR(Fill(fd->get(), queue, name, context.ids()));
    return fd;
  }
  if (ErrnoOf(fd.status()) != EEXIST) return Explain(fd.status(), name);
  fd = open(name, 0);
  if (!fd.ok()) return Explain(fd.status(), name);
  RETURN_IF_ERROR(CheckThere(fd->get(), queue, name, context));
  return fd;
}

// What mq_open(2) gave is in Kept() from here on.
Status KeepMade(std::uint64_t inode, FileRestoreContext& context) {
  for (const image::FileEntry& entry : context.entries()) {
    if (!entry.has_stasis_queue() || entry.stasis_queue().inode() != inode) continue;
    if (!entry.stasis_queue().has_max_messages()) continue;  // not the one that tells
    const std::string key = Key(entry.stasis_queue());
    if (context.Kept().contains(key)) return OkStatus();
    ASSIGN_OR_RETURN(UniqueFd made, Make(entry, context));
    context.Kept()[key] = std::move(made);
    return OkStatus();
  }
  return DataLoss("a message queue without its attributes");
}

}  // namespace

bool IsMessageQueue(const OpenFile& file) {
  return file.fs_magic == kMqueueMagic && S_ISREG(file.st.st_mode);
}

Result<image::FileEntry> DumpMessageQueue(const OpenFile& file, FileDumpContext& context) {
  image::FileEntry entry = NewEntry(file, image::FD_REG);
  // mq_open(3) opens it without a mount: "/name".
  const bool by_name = file.link.find('/', 1) == std::string::npos || file.st.st_nlink == 0;
  const std::string path = by_name ? std::string(kFolder) + PlainName(file) : file.link;
  ASSIGN_OR_RETURN(*entry.mutable_reg(), DumpRegEntry(file, file.id, path, context));
  entry.mutable_reg()->clear_size();
  entry.mutable_reg()->set_pos(0);
  StasisQueueEntry& queue = *entry.mutable_stasis_queue();
  queue.set_inode(file.st.st_ino);
  if (IsFirstOfItsQueue(file, context)) {
    ASSIGN_OR_RETURN(const UniqueFd own, Reopen(file.borrowed.get(), O_RDWR | O_NONBLOCK));
    ASSIGN_OR_RETURN(queue, ReadQueue(own.get(), NameOf(file), context));
  }
  queue.set_by_name(by_name);
  return entry;
}

Result<UniqueFd> RestoreMessageQueue(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_reg()) return DataLoss("no regular file in the entry");
  const StasisQueueEntry& queue = entry.stasis_queue();
  RETURN_IF_ERROR(KeepMade(queue.inode(), context));
  if (!queue.by_name()) return OpenRegEntry(entry.reg(), context);
  const int flags = OpenFlags(entry.reg().flags());
  ASSIGN_OR_RETURN(UniqueFd fd, Reopen(context.Kept()[Key(queue)].get(), flags | O_NONBLOCK));
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), entry.reg().flags()));
  return fd;
}

Status CompleteMessageQueues(FileRestoreContext& context) {
  for (const image::FileEntry& entry : context.entries()) {
    if (entry.has_stasis_queue()) {
      RETURN_IF_ERROR(KeepMade(entry.stasis_queue().inode(), context));
    }
  }
  return OkStatus();
}

Status DumpIdleQueues(pid_t pid, FileDumpContext& context) {
  std::set<ino_t> open;
  for (const OpenFile& file : context.files()) {
    if (IsMessageQueue(file)) open.insert(file.st.st_ino);
  }
  ASSIGN_OR_RETURN(const UniqueFd space,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/ns/ipc", O_RDONLY));
  UniqueFd folder;
  RETURN_IF_ERROR(InNamespace(space.get(), CLONE_NEWIPC, [&]() -> Status {
    ASSIGN_OR_RETURN(folder, OpenFileSystem());
    return OkStatus();
  }));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(folder.get()));
  for (const std::string& name : names) {
    const Result<UniqueFd> fd = OpenAt(folder.get(), name, O_RDWR | O_NONBLOCK);
    if (fd.status().code() == StatusCode::kNotFound) continue;  // removed by another container
    RETURN_IF_ERROR(fd.status());
    struct stat st = {};
    if (::fstat(fd->get(), &st) != 0) return SyscallError(errno, "stat message queue /" + name);
    if (open.contains(st.st_ino)) continue;
    ASSIGN_OR_RETURN(image::FileEntry entry, DumpIdleQueue(fd->get(), name, context));
    context.AddEntry(std::move(entry));
  }
  return OkStatus();
}

}  // namespace stasis::engine
