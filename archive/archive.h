// Reads a checkpoint archive: a tar file, plain or compressed, or a folder with an unpacked one.
// zstd frames with a seek table, as we write them, are read in place; what is compressed otherwise is
// unpacked first.
//
// What is read is input of strangers. Opening looks at every header before anything is given out,
// and refuses whatever a checkpoint does not have: links, devices, sparse files, names that climb
// out or come twice, sizes beyond the end of the file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "archive/manifest.h"
#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/frames/framed_file.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

/// Called now and then by what takes long, with the bytes done so far and in all.
using ProgressCall = std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

struct OpenOptions {
  std::uint64_t max_bytes = std::uint64_t{1} << 40;  ///< Of the tar, uncompressed.
  std::uint64_t max_members = 100'000;
  /// Whether one is unpacked that cannot be read in place; else it is InvalidArgument.
  bool unpack = true;
  /// Where a compressed archive is unpacked to, in a file without a name.
  std::string scratch_folder = "/var/tmp";
  ProgressCall progress = {};  ///< Of the decompression, in compressed bytes.
};

/// A small member's largest size: JSON, logs' excerpts.
inline constexpr std::uint64_t kMaxTextMember = std::uint64_t{16} << 20;

class Archive {
 public:
  /// `path` is a file or a folder. InvalidArgument: it is no checkpoint archive, or holds what none
  /// has. DataLoss: it is cut short or altered. ResourceExhausted: it is beyond a limit. Each names
  /// the member.
  static Result<std::unique_ptr<Archive>> Open(const std::string& path,
                                               const OpenOptions& options = {});
  /// The same for a regular file or a folder that is open already; `name` is for messages.
  static Result<std::unique_ptr<Archive>> OpenFd(UniqueFd fd, const std::string& name,
                                                 const OpenOptions& options = {});

  /// The files of "checkpoint/" by their plain names. Safe to read from several threads.
  const engine::ImageSource& images() const { return *images_; }
  /// All regular members by their whole names ("config.dump", "checkpoint/core-1.img").
  const engine::ImageSource& members() const { return *members_; }

  bool Has(std::string_view name) const { return members_->Size(name).ok(); }
  /// A small member, whole. NotFound, ResourceExhausted.
  Result<std::string> Get(std::string_view name, std::uint64_t limit = kMaxTextMember) const {
    return members_->Get(name, limit);
  }

  /// The archive as one file, to read with pread(2); -1 for a folder. Where compressed(), of zstd
  /// frames; an archive in another compression is given as the tar that it was unpacked to.
  int file_fd() const { return framed_ ? framed_->fd() : tar_.get(); }
  std::uint64_t file_size() const { return file_size_; }
  bool compressed() const { return framed_ != nullptr; }

  /// Fills all of `bytes` from `offset` of the uncompressed tar. Safe from several threads.
  Status ReadTar(std::span<std::byte> bytes, std::uint64_t offset) const;
  std::uint64_t tar_size() const { return tar_size_; }
  const std::string& name() const { return name_; }

  /// What is odd but harmless ("12 bytes after the end mark").
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  Archive() = default;
  Status OpenFolder(UniqueFd fd, const OpenOptions& options);
  Status OpenTar(UniqueFd fd, const OpenOptions& options);

  std::string name_;
  UniqueFd tar_;                                ///< Not open where framed_ has it.
  std::unique_ptr<frames::FramedFile> framed_;  ///< Set where the tar is read out of zstd frames.
  std::uint64_t file_size_ = 0;
  std::uint64_t tar_size_ = 0;
  std::vector<std::string> notes_;
  std::unique_ptr<engine::ImageSource> members_;
  std::unique_ptr<engine::ImageSource> images_;
};

struct Verification {
  bool has_manifest =
      false;  ///< Without one (other runtimes' archives) only the structure was checked.
  std::uint64_t members = 0;
  std::uint64_t bytes = 0;
  std::vector<std::string> problems;  ///< Empty: nothing is wrong.
  std::vector<std::string> notes;
};

/// Compares every member with the manifest. The structure was checked by Open. Cancelled: `stop` came first.
Result<Verification> Verify(const Archive& archive, const ProgressCall& progress = {},
                            const std::stop_token& stop = {});

/// OK when every member is what the manifest says, or where there is none to say it (archives of
/// other runtimes). DataLoss: the archive was altered; names a member. Reads all of it.
Status CheckUnaltered(const Archive& archive, const ProgressCall& progress = {},
                      const std::stop_token& stop = {});

/// The manifest of an archive of ours; NotFound for others.
Result<Manifest> ReadManifest(const Archive& archive);

}  // namespace stasis::archive
