// A file that appears under its name when it is whole and durable, and not before.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::archive {

class PendingFile {
 public:
  enum class Kind {
    kUnnamed,   ///< O_TMPFILE: not even a kill -9 leaves anything behind.
    kDotNamed,  ///< A hidden name beside the final one, for file systems without O_TMPFILE.
  };

  /// A file of mode 0600, readable and writable through fd(), that is to become `path`.
  /// AlreadyExists: `path` is there. NotFound, PermissionDenied: its folder is missing, not
  /// writable.
  static Result<PendingFile> Create(const std::string& path);
  static Result<PendingFile> Create(const std::string& path, Kind kind);

  PendingFile(PendingFile&& other) noexcept
      : path_(std::move(other.path_)),
        directory_(std::move(other.directory_)),
        name_(std::move(other.name_)),
        temporary_(std::exchange(other.temporary_, {})),
        fd_(std::move(other.fd_)) {}
  PendingFile& operator=(PendingFile&&) = delete;
  ~PendingFile();

  int fd() const { return fd_.get(); }
  /// Of the folder that it is in.
  int folder_fd() const { return directory_.get(); }

  /// Makes the content durable, gives the file its name, and makes the name durable. A file that
  /// took the name meanwhile is never replaced: AlreadyExists. `wanted` is asked before it gets the name, as who
  /// waits may have gone; what that says but OK is what this says.
  Status Publish(const std::function<Status()>& wanted = {});

 private:
  PendingFile(std::string path, UniqueFd directory, std::string name)
      : path_(std::move(path)), directory_(std::move(directory)), name_(std::move(name)) {}
  Status OpenUnnamed();
  Status OpenDotNamed();
  Status GiveName();
  void Discard();

  std::string path_;
  UniqueFd directory_;
  std::string name_;
  std::string temporary_;  ///< The hidden name; empty for kUnnamed and once published.
  UniqueFd fd_;
};

}  // namespace stasis::archive
