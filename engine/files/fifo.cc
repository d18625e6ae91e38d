// fifo(7): a pipe that is opened by a path.
//
// Image    two entries: FD_REG for path and flags, under an id of its own, and FD_FIFO that points
//          to it; "fifo-data" once an inode
// Restore  readers are opened O_NONBLOCK, which waits for nobody; a writer would get ENXIO without
//          a reader, so one of ours stands by until all files are restored
// Lost     who else had it open: those outside the tree open it anew by its path, or not
// Source   fifo(7), open(2) ENXIO; tested on 6.18
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/ghost_file.h"
#include "engine/files/path.h"
#include "engine/files/pipe_data.h"

namespace stasis::engine {
namespace {

bool Owns(const OpenFile& file) {
  return S_ISFIFO(file.st.st_mode) && file.fs_magic != PIPEFS_MAGIC && (file.flags & O_PATH) == 0;
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  ASSIGN_OR_RETURN(const PathState state, LookUp(file, context));
  const PipeEnds ends = EndsInTree(file, context);
  image::FileEntry path = NewEntry(file, image::FD_REG);
  path.set_id(context.NewFileId());
  ASSIGN_OR_RETURN(*path.mutable_reg(), DumpRegEntry(file, path.id(), state.path, context));
  // FinishFile() sees the FIFO's entry, which has no place for an owner.
  if (path.reg().fown().pid() != 0 || path.reg().fown().signum() != 0) {
    return Unimplemented(NameOf(file) + ": signals from a FIFO cannot be checkpointed yet");
  }
  image::FileEntry entry = NewEntry(file, image::FD_FIFO);
  entry.mutable_fifo()->set_id(file.id);
  entry.mutable_fifo()->set_pipe_id(static_cast<std::uint32_t>(file.st.st_ino));
  entry.mutable_fifo()->set_regf_id(path.id());
  if (!state.reaches && !ends.external) {
    RETURN_IF_ERROR(DumpGhost(file, path.id(), state.path, context));
  }
  context.AddEntry(std::move(path));
  if (!ends.external) RETURN_IF_ERROR(DumpPipeData(file, "fifo-data", context));
  return entry;
}

// A FIFO that is there, or was deleted.
class Fifo {
 public:
  static Result<Fifo> Find(const image::FileEntry& reg, FileRestoreContext& context) {
    ASSIGN_OR_RETURN(const auto remap, RemapOf(reg.id(), context));
    if (!remap) return Fifo(reg.reg().name(), -1, context);
    if (remap->remap_type() != image::REMAP_GHOST) {
      return Unimplemented("a FIFO that was kept by a link");
    }
    ASSIGN_OR_RETURN(const int ghost, KeepGhost(reg.reg(), remap->remap_id(), context));
    return Fifo(reg.reg().name(), ghost, context);
  }

  // Opens it for `access`; whatever is there by now does not hold us.
  Result<UniqueFd> Open(int access) const {
    const int flags = access | O_NONBLOCK | O_NOCTTY;
    Result<UniqueFd> fd =
        ghost_ >= 0 ? Reopen(ghost_, flags) : context_->actor().Open(path_, flags, 0);
    if (!fd.ok()) return Annotate(fd.status(), "open " + path_);
    struct stat st = {};
    if (::fstat(fd->get(), &st) != 0 || !S_ISFIFO(st.st_mode)) {
      return FailedPrecondition(path_ + " was a FIFO at the checkpoint and is none here");
    }
    return fd;
  }

 private:
  Fifo(std::string path, int ghost, FileRestoreContext& context)
      : path_(std::move(path)), ghost_(ghost), context_(&context) {}

  std::string path_;
  int ghost_;  // -1: by its path
  FileRestoreContext* context_;
};

// Puts the saved content into the FIFO, once, and leaves an end of ours open where one is needed. A
// reader that never had a writer must not get one: a writer's end leaves POLLHUP behind.
Status Fill(const UniqueFd& reader, const Fifo& fifo, std::uint32_t inode,
            FileRestoreContext& context) {
  const std::string key = KeptKey("fifo", inode);
  if (context.Kept().contains(key)) return OkStatus();
  ASSIGN_OR_RETURN(const bool content, HasPipeData(inode, "fifo-data", context));
  if (reader && !content) return RestorePipeData(reader.get(), inode, "fifo-data", context);
  ASSIGN_OR_RETURN(UniqueFd ours, fifo.Open(O_RDWR));
  RETURN_IF_ERROR(RestorePipeData(ours.get(), inode, "fifo-data", context));
  context.Kept()[key] = std::move(ours);
  return OkStatus();
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_fifo()) return DataLoss("no FIFO in the entry");
  const image::FifoEntry& fifo = entry.fifo();
  const image::FileEntry* const found = context.Entry(image::FD_REG, fifo.regf_id());
  if (found == nullptr || !found->has_reg() || !found->reg().name().starts_with('/')) {
    return DataLoss("no path for a FIFO");
  }
  const image::RegFileEntry& reg = found->reg();
  if (const int external = context.ExternalStdio(reg.name()); external >= 0) {
    return Duplicate(external);
  }

  ASSIGN_OR_RETURN(const Fifo path, Fifo::Find(*found, context));
  const int access = OpenFlags(reg.flags()) & O_ACCMODE;
  UniqueFd fd;
  if (access != O_WRONLY) {
    ASSIGN_OR_RETURN(fd, path.Open(access));
  }
  RETURN_IF_ERROR(Fill(fd, path, fifo.pipe_id(), context));
  if (access == O_WRONLY) {
    ASSIGN_OR_RETURN(fd, path.Open(access));
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), reg.flags()));
  return fd;
}

}  // namespace

const FileKind kFifo = {
    .name = "FIFO", .owns = Owns, .dump = Dump, .type = image::FD_FIFO, .restore = Restore};

}  // namespace stasis::engine
