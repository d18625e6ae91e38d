// Regular files that are open and have no path any more: deleted, replaced by rename(2), or
// O_TMPFILE.
//
// State    content with its holes, owner, mode, times
// Image    "ghost-file-N": an entry, then runs of content each with its place; "remap-fpath" joins
//          it to the files. N is the lowest file id of those that share inode and path
// Dump     read through a descriptor of our own: lseek(2) SEEK_DATA on the borrowed one would move
//          the offset that it shares with its holder
// Restore  made under a temporary name beside its path, unlinked at once; others that had it open
//          are opened again through ours
// Source   lseek(2), proc_pid_fd(5); tested on 6.18 with ext4, tmpfs and overlayfs
#include "engine/files/ghost_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/path.h"
#include "engine/image/image_file.h"
#include "engine/proc/fdinfo.h"
#include "engine/proc/mountinfo.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kBlockBytes = 512;  // of st_blocks, stat(2)

std::string GhostImage(std::uint32_t number) {
  const std::string name = ImageName("ghost-file", number);
  return name.substr(0, name.size() - std::string_view(".img").size());
}

std::uint32_t NumberFor(const OpenFile& file, const FileDumpContext& context) {
  std::uint32_t lowest = file.id;
  for (const OpenFile& other : context.files()) {
    const bool same = other.st.st_dev == file.st.st_dev && other.st.st_ino == file.st.st_ino &&
                      other.link == file.link;
    if (same) lowest = std::min(lowest, other.id);
  }
  return lowest;
}

// A file of a mount that its holder cannot see (lazily unmounted, or the kernel's own) would come
// back in another file system.
Status CheckMount(const OpenFile& file) {
  ASSIGN_OR_RETURN(const Fdinfo info, ParseFdinfo(file.fdinfo));
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(file.pid) + "/mountinfo"));
  ASSIGN_OR_RETURN(const std::vector<Mount> mounts, ParseMountinfo(text));
  if (std::ranges::find(mounts, info.mnt_id, &Mount::id) == mounts.end()) {
    return Unimplemented(NameOf(file) +
                         ": it is deleted, and on a mount that its holder cannot see");
  }
  return OkStatus();
}

Status CheckGhost(const OpenFile& file, const std::string& path, FileDumpContext& context) {
  if (!S_ISREG(file.st.st_mode) || (file.flags & O_PATH) != 0) {
    return Unimplemented(NameOf(file) +
                         ": its path is gone or leads elsewhere; only deleted regular "
                         "files can be checkpointed yet");
  }
  const auto bytes = static_cast<std::uint64_t>(file.st.st_blocks) * kBlockBytes;
  if (bytes > kGhostLimitBytes) {
    return Unimplemented(NameOf(file) + ": a deleted file of " + std::to_string(bytes) +
                         " bytes; the limit is " + std::to_string(kGhostLimitBytes));
  }
  RETURN_IF_ERROR(CheckMount(file));
  const std::string parent = path.substr(0, path.rfind('/') + 1);
  struct stat st = {};
  if (::fstatat(context.RootOf(file), ("." + parent).c_str(), &st, 0) != 0) {
    return Unimplemented(NameOf(file) + ": its directory is deleted too");
  }
  if (file.st.st_nlink > 0) {
    context.Note(NameOf(file) +
                 ": this path is gone but the file has others; a restore makes a copy");
  }
  return OkStatus();
}

image::GhostFileEntry GhostEntry(const struct stat& st) {
  image::GhostFileEntry ghost;
  ghost.set_uid(st.st_uid);
  ghost.set_gid(st.st_gid);
  ghost.set_mode(st.st_mode);
  // As the kernel packs it, not as stat(2) does.
  ghost.set_dev(major(st.st_dev) << 20 | minor(st.st_dev));
  ghost.set_ino(st.st_ino);
  ghost.mutable_atim()->set_tv_sec(static_cast<std::uint64_t>(st.st_atim.tv_sec));
  ghost.mutable_atim()->set_tv_usec(static_cast<std::uint64_t>(st.st_atim.tv_nsec / 1000));
  ghost.mutable_mtim()->set_tv_sec(static_cast<std::uint64_t>(st.st_mtim.tv_sec));
  ghost.mutable_mtim()->set_tv_usec(static_cast<std::uint64_t>(st.st_mtim.tv_nsec / 1000));
  ghost.set_chunks(true);
  ghost.set_size(static_cast<std::uint64_t>(st.st_size));
  return ghost;
}

// Adds every run of data of `fd`, at most the limit in all: the file may have grown since its size
// was looked at only by a process outside the tree.
Status DumpContent(const OpenFile& file, int fd, const std::string& image_name,
                   FileDumpContext& context) {
  off_t end = 0;
  std::uint64_t total = 0;
  while (true) {
    const off_t start = ::lseek(fd, end, SEEK_DATA);
    if (start < 0 && errno == ENXIO) return OkStatus();  // only a hole is left
    if (start < 0) {
      return SyscallError(errno, "SEEK_DATA " + NameOf(file));
    }
    end = ::lseek(fd, start, SEEK_HOLE);
    if (end < 0) {
      return SyscallError(errno, "SEEK_HOLE " + NameOf(file));
    }
    const auto length = static_cast<std::uint64_t>(end - start);
    total += length;
    if (total > kGhostLimitBytes) {
      return Unimplemented(NameOf(file) + ": a deleted file of more than " +
                           std::to_string(kGhostLimitBytes) + " bytes");
    }
    std::string content(length, '\0');
    const auto bytes = std::as_writable_bytes(std::span(content.data(), content.size()));
    RETURN_IF_ERROR(
        Annotate(ReadExactAt(fd, bytes, static_cast<std::uint64_t>(start)), NameOf(file)));
    image::GhostChunkEntry chunk;
    chunk.set_off(static_cast<std::uint64_t>(start));
    chunk.set_len(length);
    context.AddRecord(image_name, chunk.SerializeAsString(), std::move(content));
  }
}

// ---- restore ----

Status WriteAt(int fd, std::string_view bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0) {
      if (errno == EINTR) continue;
      return SyscallError(errno, "write a deleted file");
    }
    bytes.remove_prefix(static_cast<std::size_t>(put));
    offset += static_cast<std::uint64_t>(put);
  }
  return OkStatus();
}

Status FillGhost(int fd, const image::GhostFileEntry& ghost, ImageFileReader& reader) {
  if (!ghost.chunks()) return WriteAt(fd, reader.Rest(), 0);
  while (!reader.AtEnd()) {
    image::GhostChunkEntry chunk;
    RETURN_IF_ERROR(reader.Record(chunk));
    ASSIGN_OR_RETURN(const std::string_view bytes, reader.Raw(chunk.len()));
    RETURN_IF_ERROR(WriteAt(fd, bytes, chunk.off()));
  }
  if (::ftruncate(fd, static_cast<off_t>(ghost.size())) != 0) {
    return SyscallError(errno, "set the size of a deleted file");
  }
  return OkStatus();
}

// Owner, mode and times. Never set-user-ID bits: the owner is set with our rights, and a program
// that an archive brings must not run with an identity of the archive's choice.
Status SetAttributes(int fd, const image::GhostFileEntry& ghost) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) {
    return SyscallError(errno, "stat a deleted file");
  }
  const bool owned = st.st_uid == ghost.uid() && st.st_gid == ghost.gid();
  if (!owned && ::fchown(fd, ghost.uid(), ghost.gid()) != 0) {
    return SyscallError(errno, "set the owner of a deleted file");
  }
  if (::fchmod(fd, ghost.mode() & 0777) != 0) {
    return SyscallError(errno, "set the mode of a deleted file");
  }
  if (!ghost.has_atim() || !ghost.has_mtim()) return OkStatus();
  const auto time_of = [](const image::Timeval& time) {
    return timespec{.tv_sec = static_cast<time_t>(time.tv_sec()),
                    .tv_nsec = static_cast<long>(time.tv_usec() % 1'000'000 * 1000)};
  };
  const std::array<timespec, 2> times = {time_of(ghost.atim()), time_of(ghost.mtim())};
  if (::futimens(fd, times.data()) != 0) {
    return SyscallError(errno, "set the times of a deleted file");
  }
  return OkStatus();
}

Result<UniqueFd> MakeGhost(const std::string& path, std::uint32_t number,
                           FileRestoreContext& context) {
  const std::string name = ImageName("ghost-file", number);
  ASSIGN_OR_RETURN(ImageFileReader reader,
                   ImageFileReader::Open(context.source(), name, "ghost-file"));
  image::GhostFileEntry ghost;
  RETURN_IF_ERROR(reader.Record(ghost));
  if (!S_ISREG(ghost.mode())) {
    return Unimplemented(name + ": only deleted regular files can be restored yet");
  }
  const std::string temporary = path + ".stasis-" + std::to_string(number) + ".ghost";
  Result<UniqueFd> fd =
      context.actor().Open(temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  if (!fd.ok()) return Annotate(fd.status(), "make deleted file " + path + " again");
  RETURN_IF_ERROR(context.actor().Unlink(temporary));
  RETURN_IF_ERROR(FillGhost(fd->get(), ghost, reader));
  RETURN_IF_ERROR(SetAttributes(fd->get(), ghost));
  return fd;
}

}  // namespace

Status DumpGhost(const OpenFile& file, const std::string& path, FileDumpContext& context) {
  RETURN_IF_ERROR(CheckGhost(file, path, context));
  const std::uint32_t number = NumberFor(file, context);
  image::RemapFilePathEntry remap;
  remap.set_orig_id(file.id);
  remap.set_remap_id(number);
  remap.set_remap_type(image::REMAP_GHOST);
  context.AddRecord("remap-fpath", remap.SerializeAsString(), "");
  if (number != file.id) return OkStatus();

  const std::string image_name = GhostImage(number);
  ASSIGN_OR_RETURN(const UniqueFd fd, Reopen(file.borrowed.get(), O_RDONLY));
  context.AddRecord(image_name, GhostEntry(file.st).SerializeAsString(), "");
  return DumpContent(file, fd.get(), image_name, context);
}

Result<std::optional<std::uint32_t>> GhostOf(std::uint32_t id, FileRestoreContext& context) {
  using Record = FileRestoreContext::Record;
  ASSIGN_OR_RETURN(const std::span<const Record> records, context.Records("remap-fpath"));
  for (const Record& record : records) {
    image::RemapFilePathEntry remap;
    if (!remap.ParsePartialFromString(record.message) || !remap.IsInitialized()) {
      return DataLoss("remap-fpath: a record does not parse");
    }
    if (remap.orig_id() != id) continue;
    if (remap.remap_type() != image::REMAP_GHOST) {
      return Unimplemented("a deleted file that was kept by a hard link");
    }
    return remap.remap_id();
  }
  return std::nullopt;
}

Result<UniqueFd> RestoreGhost(const image::RegFileEntry& reg, std::uint32_t number,
                              FileRestoreContext& context) {
  if (!reg.name().starts_with('/')) {
    return InvalidArgument("the path \"" + reg.name() + "\" is not absolute");
  }
  const std::string key = KeptKey("ghost", number);
  if (!context.Kept().contains(key)) {
    ASSIGN_OR_RETURN(UniqueFd made, MakeGhost(reg.name(), number, context));
    context.Kept()[key] = std::move(made);
  }
  const int flags = OpenFlags(reg.flags()) & ~(O_PATH | O_NOFOLLOW | O_DIRECTORY);
  ASSIGN_OR_RETURN(UniqueFd fd, Reopen(context.Kept()[key].get(), flags));
  RETURN_IF_ERROR(SetRegState(fd.get(), reg));
  return fd;
}

}  // namespace stasis::engine
