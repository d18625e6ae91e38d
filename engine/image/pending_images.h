// A plain folder of image files, as CRIU's tools read it, whose files appear when all are whole.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/image_io.h"

namespace stasis::engine {

/// Files have no name (O_TMPFILE) until Publish, so that not even a kill -9 leaves half a
/// checkpoint; on file systems without such files they are there from their beginning, and the
/// destructor removes them. Holds one descriptor a file; of more than a thousand those that are whole get their
/// names at once, too: without an inventory, which comes last, they are no checkpoint.
class PendingImages : public ImageSink {
 public:
  /// Into `folder`, which must exist and have no image file yet: images of two checkpoints must not mix.
  /// What else is in it (logs) stays. NotFound, AlreadyExists, PermissionDenied: it cannot be used.
  static Result<std::unique_ptr<PendingImages>> Create(const std::string& folder);
  ~PendingImages() override;

  Result<std::unique_ptr<ImageStream>> Open(std::string_view name,
                                            std::uint64_t size_bytes) override;

  /// Makes files without names: for some file systems that takes longer than to fill them.
  Status Fill(std::span<const ImageContent> files, const PassedOn& passed_on) override;
  void Prepare(std::size_t files) override;
  Status BeginIncrement() override;

  /// Makes all files durable and gives them their names, those of parents first.
  Status Publish();

 private:
  struct File {
    std::string name;
    UniqueFd fd;
    bool named = false;
    int depth = 0;  // how many `parent/` are in front of its name
    std::shared_ptr<bool> whole = std::make_shared<bool>(false);
  };

  PendingImages(std::string path, UniqueFd folder)
      : path_(std::move(path)), folder_(std::move(folder)) {}
  UniqueFd MakeNameless() const;
  Result<File> Make(const std::string& name);
  Status GiveName(File& file);
  Status LetGoOfWhole();
  Status Sync(const File& file) const;
  Status SyncAll() const;
  Status MakeParents(int depth);
  int FolderAt(int depth) const;

  const std::string path_;
  const UniqueFd folder_;
  std::vector<UniqueFd> parents_;  // the folders `parent`, each in the one before
  std::vector<File> files_;
  std::vector<UniqueFd> spare_;  // files that were made for some to come
  std::size_t held_ = 0;         // of them, by a descriptor
  bool published_ = false;
};

}  // namespace stasis::engine
