// Source  linkat(2), open_by_handle_at(2), name_to_handle_at(2); tested on 6.18 with ext4 and tmpfs
// Rule    A link is made within a mount, not only within a file system: do_linkat() in fs/namei.c. Through another
//         mount a file that has no name there is reached by its handle, with CAP_DAC_READ_SEARCH
#include "engine/files/ghost_names.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "engine/files/description.h"
#include "engine/files/kept_files.h"

namespace stasis::engine {
namespace {

std::string Key(const image::RegFileEntry& reg, std::uint32_t number) {
  return KeptKey("ghost", number) + " of mount " + std::to_string(reg.mnt_id()) + " as " +
         reg.name();
}

bool IsSame(int a, int b) {
  struct stat of_a = {}, of_b = {};
  return ::fstat(a, &of_a) == 0 && ::fstat(b, &of_b) == 0 && of_a.st_dev == of_b.st_dev &&
         of_a.st_ino == of_b.st_ino;
}

/// The file `fd` through the mount that `place` is on.
Result<UniqueFd> Through(int place, int fd) {
  alignas(file_handle) std::byte buffer[sizeof(file_handle) + MAX_HANDLE_SZ] = {};
  auto* const handle = reinterpret_cast<file_handle*>(buffer);
  handle->handle_bytes = MAX_HANDLE_SZ;
  int mount = 0;
  if (::name_to_handle_at(fd, "", handle, &mount, AT_EMPTY_PATH) != 0) {
    return SyscallError(errno, "name_to_handle_at");
  }
  UniqueFd found(::open_by_handle_at(place, handle, O_PATH | O_CLOEXEC));
  if (!found) return SyscallError(errno, "open_by_handle_at");
  if (!IsSame(found.get(), fd)) return FailedPrecondition("it is on another file system");
  return found;
}

// As its root, for some file systems take no name from another (see AsRootOf).
Status Link(int fd, int folder, const std::string& name, const UserIds& ids) {
  return AsRootOf(ids, [&]() -> Status {
    const std::string magic = "/proc/self/fd/" + std::to_string(fd);
    if (::linkat(AT_FDCWD, magic.c_str(), folder, name.c_str(), AT_SYMLINK_FOLLOW) == 0) {
      return OkStatus();
    }
    return SyscallError(errno, "link " + name);
  });
}

// Gives `fd` the name `path` for a moment, with our rights: the process under restore has to be able to make a
// file there itself.
Result<UniqueFd> OpenByNewName(int fd, const std::string& path, FileRestoreContext& context) {
  FileActor& actor = context.actor();
  GoneFolders folders(actor);
  RETURN_IF_ERROR(folders.Make(path));
  ASSIGN_OR_RETURN(const UniqueFd place,
                   actor.Open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
  RETURN_IF_ERROR(actor.Unlink(path));
  const std::size_t slash = path.rfind('/');
  ASSIGN_OR_RETURN(const UniqueFd folder,
                   actor.Open(path.substr(0, slash + 1), O_PATH | O_DIRECTORY, 0));
  const std::string name = path.substr(slash + 1);
  Status linked = Link(fd, folder.get(), name, context.ids());
  if (ErrnoOf(linked) == EXDEV) {
    ASSIGN_OR_RETURN(const UniqueFd there, Through(place.get(), fd));
    linked = Link(there.get(), folder.get(), name, context.ids());
  }
  RETURN_IF_ERROR(linked);
  const absl::Cleanup unlink = [&] { (void)actor.Unlink(path); };  // or is somebody else's by now
  return actor.Open(path, O_PATH | O_NOFOLLOW, 0);
}

Result<UniqueFd> OpenAs(int fd, const std::string& path, FileRestoreContext& context) {
  // The same name in another mount namespace, perhaps.
  Result<UniqueFd> found = context.actor().Open(path, O_PATH | O_NOFOLLOW, 0);
  if (found.ok() && IsSame(found->get(), fd)) return found;
  ASSIGN_OR_RETURN(UniqueFd made, OpenByNewName(fd, path, context));
  if (!IsSame(made.get(), fd)) return FailedPrecondition("somebody else takes this path");
  return made;
}

}  // namespace

Status GoneFolders::Make(const std::string& path) {
  for (std::size_t end = path.find('/', 1); end != std::string::npos;
       end = path.find('/', end + 1)) {
    const Status made = actor_.MakeNode(path.substr(0, end), S_IFDIR | 0700, 0);
    if (made.ok()) made_.push_back(path.substr(0, end));
    // What cannot be made may be there all the same: on a file system that is read only.
  }
  return OkStatus();
}

Status GoneFolders::Remove() {
  Status status;
  for (; !made_.empty(); made_.pop_back()) {
    if (Status removed = actor_.RemoveFolder(made_.back()); !removed.ok()) status = removed;
  }
  return status;
}

Status KeepOtherNames(int fd, std::uint32_t number, const image::RegFileEntry& first,
                      FileRestoreContext& context) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) return SyscallError(errno, "stat a deleted file");
  if (S_ISDIR(st.st_mode)) return OkStatus();  // has one name
  using Record = FileRestoreContext::Record;
  ASSIGN_OR_RETURN(const std::span<const Record> records, context.Records("remap-fpath"));
  for (const Record& record : records) {
    image::RemapFilePathEntry remap;
    if (!remap.ParsePartialFromString(record.message) || remap.remap_id() != number) continue;
    const image::FileEntry* const entry = context.Entry(image::FD_REG, remap.orig_id());
    if (remap.remap_type() != image::REMAP_GHOST || entry == nullptr) continue;
    const image::RegFileEntry& reg = entry->reg();
    const bool is_first = reg.name() == first.name() && reg.mnt_id() == first.mnt_id();
    if (is_first || GhostAs(reg, number, context) >= 0 || !reg.name().starts_with('/')) continue;
    RETURN_IF_ERROR(context.EnterMount(reg.mnt_id()));
    Result<UniqueFd> opened = OpenAs(fd, reg.name(), context);
    if (opened.ok()) {
      context.Kept()[Key(reg, number)] = *std::move(opened);
    } else {
      context.Note(reg.name() + ": it is deleted, and open as " + first.name() +
                   " now: " + std::string(Message(opened.status())));
    }
  }
  return context.EnterMount(first.mnt_id());
}

int GhostAs(const image::RegFileEntry& reg, std::uint32_t number, FileRestoreContext& context) {
  return KeptFd(Key(reg, number), context);
}

}  // namespace stasis::engine
