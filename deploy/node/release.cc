#include "deploy/node/release.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "deploy/node/plan.h"
#include "engine/base/io.h"

namespace stasis::node {
namespace {

namespace fs = std::filesystem;

constexpr const char* kState = "/var/lib/stasis";

Status SyncFileSystemOf(const std::string& path) {
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenAt(AT_FDCWD, path, O_RDONLY | O_DIRECTORY));
  if (::syncfs(folder.get()) != 0) {
    const int error = errno;
    return SyscallError(error, "syncfs " + path);
  }
  return OkStatus();
}

void RemoveTree(const NodeFiles& files, const std::string& path) {
  const auto place = files.Place(path, false);
  std::error_code error;
  if (place.ok()) fs::remove_all(*place, error);  // links inside are removed, not followed
}

// What stasisd remembers of restored containers; unless one runs, as it does where no service is stopped: it
// holds the lock (cri/shim.cc), and could restore nothing without its folder.
void RemoveState(const NodeFiles& files) {
  const std::string lock = std::string(kState) + "/lock";
  const auto place = files.Place(lock, false);
  if (!place.ok()) return;
  const auto held = OpenAt(AT_FDCWD, *place, O_RDWR | O_NOFOLLOW);
  if (held.ok() && ::flock(held->get(), LOCK_EX | LOCK_NB) != 0) return;
  RemoveTree(files, std::string(kState) + "/containers");
  RemoveTree(files, lock);
}

}  // namespace

Status CopyRelease(const NodeFiles& files, const std::string& from) {
  if (from.empty()) return OkStatus();
  const std::string path = std::string(kReleases) + "/" + ReleaseName(from);
  if (files.Exists(path)) return OkStatus();
  RETURN_IF_ERROR(files.MakeFolders(path));
  ASSIGN_OR_RETURN(const std::string place, files.Place(path, false));
  const std::string partial = fs::path(place).parent_path() / ".partial";
  std::error_code error;
  fs::remove_all(partial, error);
  if (!error) {
    fs::copy(from, partial, fs::copy_options::recursive | fs::copy_options::copy_symlinks, error);
  }
  if (error) return SyscallError(error.value(), "copy " + from + " to " + partial);
  RETURN_IF_ERROR(SyncFileSystemOf(partial));
  if (::rename(partial.c_str(), place.c_str()) != 0) {
    const int failure = errno;
    return SyscallError(failure, "rename " + partial);
  }
  return SyncFileSystemOf(fs::path(place).parent_path());
}

void RemoveReleasesBut(const NodeFiles& files, const std::vector<std::string>& kept) {
  for (const std::string& name : files.Names(kReleases)) {
    if (std::find(kept.begin(), kept.end(), name) == kept.end()) {
      RemoveTree(files, std::string(kReleases) + "/" + name);
    }
  }
}

void RemoveReleases(const NodeFiles& files) {
  RemoveTree(files, kReleases);
  RemoveState(files);
  RemoveTree(files, "/run/stasis/credentials");
  RemoveTree(files, "/etc/stasis/tls");
}

}  // namespace stasis::node
