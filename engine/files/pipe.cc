// pipe(2): two or more open files on one inode of pipefs, behind the link "pipe:[12]".
//
// State    which ends there are, the bytes in between, the buffer's size
// Image    FD_PIPE an open file, joined by the inode's number; "pipes-data" once an inode, or once a
//          packet (O_DIRECT)
// Dump     bytes by tee(2), which leaves them there. An end whose other side nobody holds any more
//          has POLLHUP (no writers) or POLLERR (no readers), poll(2)
// Restore  one pipe an inode, whose ends go to the first open file that needs each; others are
//          opened through /proc/self/fd, so that those that were separate are separate again. Ours
//          close when all files are restored: an end that was alone is alone again
// Source   pipe(7), tee(2), fcntl(2); tested on 6.18
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/pipe_data.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) {
  return S_ISFIFO(file.st.st_mode) && file.fs_magic == PIPEFS_MAGIC;
}

// Fails when somebody outside the tree holds the other end.
Status CheckOtherEnd(const OpenFile& file, const PipeEnds& ends, const FileDumpContext& context) {
  if ((ends.reader && ends.writer) || context.IsOfAutofs(file)) return OkStatus();
  ASSIGN_OR_RETURN(const short state, PollNow(file.borrowed.get(), 0));
  if ((state & (ends.reader ? POLLHUP : POLLERR)) != 0) return OkStatus();
  return Unimplemented(NameOf(file) +
                       ": the other end of this pipe is held by a process outside the tree; close "
                       "it, or checkpoint both processes together");
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  if ((file.flags & O_PATH) != 0) {
    return Unimplemented(NameOf(file) + ": O_PATH on a pipe cannot be checkpointed yet");
  }
  image::FileEntry entry = NewEntry(file, image::FD_PIPE);
  RETURN_IF_ERROR(DumpCommon(file, context, *entry.mutable_pipe()));
  entry.mutable_pipe()->set_pipe_id(static_cast<std::uint32_t>(file.st.st_ino));
  const PipeEnds ends = EndsInTree(file, context);
  if (ends.external) return entry;
  RETURN_IF_ERROR(CheckOtherEnd(file, ends, context));
  RETURN_IF_ERROR(DumpPipeData(file, "pipes-data", context));
  return entry;
}

Result<UniqueFd> RestoreExternal(int fd, const image::PipeEntry& pipe) {
  ASSIGN_OR_RETURN(UniqueFd copy, Duplicate(fd));
  // A terminal or file of the owner's keeps its own flags: others may share them.
  struct stat st = {};
  if (::fstat(copy.get(), &st) == 0 && S_ISFIFO(st.st_mode)) {
    RETURN_IF_ERROR(SetStatusFlags(copy.get(), pipe.flags()));
  }
  return copy;
}

Status MakePipe(const image::PipeEntry& pipe, FileRestoreContext& context) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
    return SyscallError(errno, "pipe");
  }
  context.Kept()[KeptKey("pipe-reader", pipe.pipe_id())] = UniqueFd(ends[0]);
  context.Kept()[KeptKey("pipe-writer", pipe.pipe_id())] = UniqueFd(ends[1]);
  return RestorePipeData(ends[1], pipe.pipe_id(), "pipes-data", context);
}

// An end that is restored already, of which `pipe` is another open file description.
Result<int> GivenEnd(const image::PipeEntry& pipe, FileRestoreContext& context) {
  const auto writes = [](const image::PipeEntry& one) {
    return (one.flags() & O_ACCMODE) == O_WRONLY;
  };
  for (const image::FileEntry& entry : context.entries()) {
    const image::PipeEntry& other = entry.pipe();
    const bool same_end = entry.type() == image::FD_PIPE && other.pipe_id() == pipe.pipe_id() &&
                          writes(other) == writes(pipe) && other.id() != pipe.id() &&
                          (other.flags() & O_ACCMODE) != O_RDWR;
    if (!same_end) continue;
    const Result<int> fd = context.Restored(entry.id());
    if (fd.ok()) return fd;
  }
  return DataLoss("a pipe whose end is not in the images");
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_pipe()) return DataLoss("no pipe in the entry");
  const image::PipeEntry& pipe = entry.pipe();
  const int external = context.ExternalStdio(ObjectLink("pipe", pipe.pipe_id()));
  if (external >= 0) return RestoreExternal(external, pipe);
  if (!context.Kept().contains(KeptKey("pipe-reader", pipe.pipe_id()))) {
    RETURN_IF_ERROR(MakePipe(pipe, context));
  }
  const std::uint32_t access = pipe.flags() & O_ACCMODE;
  const std::string key =
      KeptKey(access == O_WRONLY ? "pipe-writer" : "pipe-reader", pipe.pipe_id());
  UniqueFd& end = context.Kept()[key];
  // The first to need an end gets ours, not a second descriptor for it: a tree may have as many pipes as our
  // limit of open files allows. The others open it again.
  if (access != O_RDWR && end) {
    RETURN_IF_ERROR(SetStatusFlags(end.get(), pipe.flags()));
    return std::move(end);
  }
  ASSIGN_OR_RETURN(const int known, end ? Result<int>(end.get()) : GivenEnd(pipe, context));
  // open(2) takes no O_DIRECT here, F_SETFL does.
  ASSIGN_OR_RETURN(UniqueFd other,
                   Reopen(known, OpenFlags(pipe.flags()) & ~(O_PATH | O_DIRECTORY | O_DIRECT)));
  RETURN_IF_ERROR(SetStatusFlags(other.get(), pipe.flags()));
  return other;
}

}  // namespace

const FileKind kPipe = {
    .name = "pipe", .owns = Owns, .dump = Dump, .type = image::FD_PIPE, .restore = Restore};

}  // namespace stasis::engine
