#include "cri/checkpoint/shared_memory.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "archive/folder_names.h"
#include "archive/members.h"
#include "archive/tmpfs_content.h"
#include "cri/log.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

constexpr std::uint64_t kMaxBytes = std::uint64_t{64} << 20;
constexpr long kTmpfsMagic = 0x01021994;

// Its /dev/shm, where that is a tmpfs; else none. Links there are the container's: none is followed.
Result<UniqueFd> OpenSharedMemory(pid_t pid) {
  ASSIGN_OR_RETURN(const UniqueFd root, OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/root",
                                               O_PATH | O_DIRECTORY));
  open_how how = {};
  how.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS;
  UniqueFd folder(
      static_cast<int>(::syscall(SYS_openat2, root.get(), "dev/shm", &how, sizeof(how))));
  if (!folder) {
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP) return UniqueFd();
    return SyscallError(errno, "open /dev/shm");
  }
  struct statfs fs = {};
  if (::fstatfs(folder.get(), &fs) != 0) return SyscallError(errno, "statfs /dev/shm");
  return fs.f_type == kTmpfsMagic ? std::move(folder) : UniqueFd();
}

}  // namespace

Status WriteSharedMemory(const ContainerFacts& facts, archive::ArchiveWriter& writer) {
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenSharedMemory(facts.pid));
  if (!folder) return OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> names, archive::FolderNames(folder.get()));
  if (names.empty()) return OkStatus();
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::OfPid(facts.pid));
  const Result<std::string> content = archive::ReadTmpfsContent(folder.get(), kMaxBytes, ids);
  if (!content.ok()) return Annotate(content.status(), "/dev/shm");
  return writer.AddMember(archive::kSharedMemoryName, *content);
}

Status RestoreSharedMemory(const ContainerFacts& facts, const archive::Archive& checkpoint) {
  if (!checkpoint.Has(archive::kSharedMemoryName)) return OkStatus();
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenSharedMemory(facts.pid));
  if (!folder) return FailedPrecondition("the container has no tmpfs at /dev/shm");
  ASSIGN_OR_RETURN(const std::string content, checkpoint.Get(archive::kSharedMemoryName));
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::OfPid(facts.pid));
  archive::TmpfsRestoreReport report;
  RETURN_IF_ERROR(AsRootOf(ids, [&]() -> Status {
    ASSIGN_OR_RETURN(report, archive::RestoreTmpfsContent(folder.get(), content, kMaxBytes, ids));
    return OkStatus();
  }));
  for (const std::string& path : report.kept) {
    log::Warn("in /dev/shm already, ignoring what the checkpoint has",
              {{"container", facts.status.id()}, {"path", path}});
  }
  return OkStatus();
}

}  // namespace stasis::cri
