#include "kubelet-api/checkpoint_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <utility>

#include "archive/members.h"
#include "cri/checkpoint/stored_archive.h"
#include "engine/base/io.h"

namespace stasis::kubelet_api {
namespace {

// What may be in names of pods, namespaces and containers, and in Go's RFC 3339.
bool MayBeInName(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' ||
         c == ':' || c == '+' || c == 'T' || c == 'Z';
}

Status NoSuchCheckpoint(const std::string& name, const std::string& pod_namespace) {
  return NotFound("checkpoint " + name + " does not exist in namespace " + pod_namespace);
}

Result<std::unique_ptr<archive::Archive>> OpenArchive(int fd, const std::string& name) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) {
    const int error = errno;
    return SyscallError(error, "duplicate a descriptor");
  }
  return archive::Archive::OpenFd(std::move(copy), name, {.unpack = false});
}

// InvalidArgument, DataLoss: no archive.
Result<StoredCheckpoint> Describe(int folder, const std::string& name) {
  StoredCheckpoint found;
  found.name = name;
  // Not a link, and not waiting for the writer of a FIFO.
  ASSIGN_OR_RETURN(found.file, OpenAt(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  struct stat is = {};
  if (::fstat(found.file.get(), &is) != 0 || !S_ISREG(is.st_mode)) {
    return InvalidArgument(name + " is no archive");
  }
  found.size = static_cast<std::uint64_t>(is.st_size);
  found.made = archive::Rfc3339(std::chrono::system_clock::from_time_t(is.st_mtim.tv_sec));
  found.tag = std::to_string(is.st_dev) + "-" + std::to_string(is.st_ino) + "-" +
              std::to_string(is.st_size) + "-" + std::to_string(is.st_mtim.tv_sec) + "." +
              std::to_string(is.st_mtim.tv_nsec);
  ASSIGN_OR_RETURN(const auto opened, OpenArchive(found.file.get(), name));
  ASSIGN_OR_RETURN(found.of, cri::ContainerOf(*opened, name));
  return found;
}

}  // namespace

bool CheckpointFolder::IsName(std::string_view name) {
  return name.size() <= 255 && name.starts_with("checkpoint-") && name.ends_with(".tar") &&
         std::ranges::count(name, '_') == 1 && std::ranges::all_of(name, MayBeInName);
}

Result<std::string> CheckpointFolder::NewPath(const cri::PodContainer& of) const {
  std::error_code error;
  if (std::filesystem::create_directories(path_, error)) {
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all, error);
  }
  if (error) return SyscallError(error.value(), "create the folder of checkpoints " + path_);
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  ::localtime_r(&now, &parts);
  std::array<char, 32> date = {};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::array<char, 8> zone = {};
  std::strftime(zone.data(), zone.size(), "%z", &parts);  // "+0130"; RFC 3339 has "+01:30", or "Z"
  std::string offset = zone.data();
  offset = parts.tm_gmtoff == 0 ? "Z" : offset.insert(3, ":");
  return path_ + "/checkpoint-" + of.pod + "_" + of.pod_namespace + "-" + of.container + "-" +
         date.data() + offset + ".tar";
}

Result<UniqueFd> CheckpointFolder::OpenFolder() const {
  return OpenAt(AT_FDCWD, path_, O_RDONLY | O_DIRECTORY);
}

Result<std::vector<StoredCheckpoint>> CheckpointFolder::List(const std::string* pod_namespace,
                                                             const std::stop_token& stop) const {
  std::vector<StoredCheckpoint> all;
  const Result<UniqueFd> folder = OpenFolder();
  if (folder.status().code() == StatusCode::kNotFound) return all;  // nobody made a checkpoint yet
  RETURN_IF_ERROR(folder.status());
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path_, error)) {
    const std::string name = entry.path().filename();
    if (!IsName(name)) continue;
    if (stop.stop_requested()) return Cancelled("nobody waits for the list any more");
    Result<StoredCheckpoint> found = Describe(folder->get(), name);
    if (!found.ok() || (pod_namespace != nullptr && found->of.pod_namespace != *pod_namespace)) {
      continue;
    }
    found->file.Reset();
    all.push_back(*std::move(found));
  }
  if (error) return SyscallError(error.value(), "read the folder " + path_);
  std::ranges::sort(all, {}, &StoredCheckpoint::name);
  return all;
}

Result<StoredCheckpoint> CheckpointFolder::Find(const std::string& pod_namespace,
                                                const std::string& name) const {
  if (!IsName(name)) return NoSuchCheckpoint(name, pod_namespace);
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder());
  Result<StoredCheckpoint> found = Describe(folder.get(), name);
  if (!found.ok() || found->of.pod_namespace != pod_namespace || pod_namespace.empty()) {
    return NoSuchCheckpoint(name, pod_namespace);
  }
  return found;
}

Result<std::unique_ptr<archive::Archive>> CheckpointFolder::Open(
    const StoredCheckpoint& checkpoint) const {
  return OpenArchive(checkpoint.file.get(), checkpoint.name);
}

Status CheckpointFolder::Delete(const StoredCheckpoint& checkpoint) const {
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder());
  struct stat looked_at = {}, there = {};
  if (::fstat(checkpoint.file.get(), &looked_at) != 0 ||
      ::fstatat(folder.get(), checkpoint.name.c_str(), &there, AT_SYMLINK_NOFOLLOW) != 0 ||
      looked_at.st_ino != there.st_ino || looked_at.st_dev != there.st_dev) {
    return Aborted("checkpoint " + checkpoint.name + " was replaced meanwhile; look again");
  }
  if (::unlinkat(folder.get(), checkpoint.name.c_str(), 0) == 0) return OkStatus();
  const int error = errno;
  return SyscallError(error, "delete " + checkpoint.name);
}

}  // namespace stasis::kubelet_api
