#include "cri/checkpoint/namespace_share.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cerrno>
#include <filesystem>

#include "archive/archive.h"
#include "cri/checkpoint/stored_archive.h"
#include "cri/pod_events.h"
#include "engine/base/io.h"

namespace stasis::cri {
namespace {

constexpr std::uint64_t kStatBlock = 512;  // of st_blocks, stat(2)

// Space that the file takes; none when it is no archive of the namespace.
std::uint64_t SpaceOf(const std::string& path, const std::string& name,
                      const std::string& pod_namespace) {
  // Not a link, and not waiting for the writer of a FIFO.
  Result<UniqueFd> file = OpenAt(AT_FDCWD, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  struct stat is = {};
  if (!file.ok() || ::fstat(file->get(), &is) != 0 || !S_ISREG(is.st_mode)) return 0;
  const auto archive = archive::Archive::OpenFd(*std::move(file), name, {.unpack = false});
  if (!archive.ok()) return 0;
  const Result<PodContainer> of = ContainerOf(**archive, name);
  if (!of.ok() || of->pod_namespace != pod_namespace) return 0;
  return static_cast<std::uint64_t>(is.st_blocks) * kStatBlock;
}

std::uint64_t SpaceOfAll(const std::string& folder, const std::string& pod_namespace) {
  std::uint64_t bytes = 0;
  const std::string in_name = "_" + pod_namespace + "-";  // "b-" may be of another's container, too
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("checkpoint-") && name.find(in_name) != std::string::npos) {
      bytes += SpaceOf(entry.path(), name, pod_namespace);
    }
  }
  return bytes;
}

Status Taken(const std::string& pod_namespace, const std::string& folder, std::uint64_t bytes,
             std::uint64_t most) {
  return SyscallError(
      EDQUOT, "archives of namespace " + pod_namespace + " take " + SizeText(bytes) + " in " +
                  folder + ", and may take " + SizeText(most) +
                  " of its disk (--checkpoint-namespace-share); delete some of them: kubectl "
                  "checkpoint list -n " +
                  pod_namespace + ", kubectl checkpoint delete NAME -n " + pod_namespace);
}

}  // namespace

Result<std::unique_ptr<NamespaceShare::Part>> NamespaceShare::Begin(
    const std::string& folder, const std::string& pod_namespace) {
  constexpr int kAll = 100;
  struct statvfs disk = {};
  // What is wrong with the folder, whoever writes there says. A container that no kubelet made is of no namespace.
  if (most_percent_ >= kAll || pod_namespace.empty() || ::statvfs(folder.c_str(), &disk) != 0) {
    return std::unique_ptr<Part>();
  }
  const std::uint64_t most =
      disk.f_blocks * disk.f_frsize / kAll * static_cast<std::uint64_t>(most_percent_);
  std::unique_ptr<Part> part(new Part(*this, folder, pod_namespace, most));
  std::unique_lock lock(mutex_);
  Use& use = uses_[part->of_];
  ++use.parts;  // from here on `part` keeps it
  // Others go on meanwhile; when one has ended, it was perhaps not counted.
  for (bool counted = false; !counted;) {
    const std::uint64_t done = use.done;
    lock.unlock();
    const std::uint64_t stored = SpaceOfAll(folder, pod_namespace);
    lock.lock();
    counted = use.done == done;
    use.stored = stored;
  }
  const std::uint64_t taken = use.stored + use.pending;
  lock.unlock();
  if (taken >= most) return Taken(pod_namespace, folder, taken, most);
  return part;
}

Status NamespaceShare::Part::Takes(std::uint64_t bytes) {
  const std::lock_guard lock(share_.mutex_);
  Use& use = share_.uses_.at(of_);
  use.pending = use.pending - bytes_ + bytes;
  bytes_ = bytes;
  const std::uint64_t taken = use.stored + use.pending;
  return taken <= most_ ? OkStatus() : Taken(of_.second, of_.first, taken, most_);
}

NamespaceShare::Part::~Part() {
  const std::lock_guard lock(share_.mutex_);
  const auto found = share_.uses_.find(of_);
  Use& use = found->second;
  use.pending -= bytes_;
  if (archive_bytes_ > 0) {
    use.stored += archive_bytes_;
    ++use.done;
  }
  if (--use.parts == 0) share_.uses_.erase(found);
}

}  // namespace stasis::cri
