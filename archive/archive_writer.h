// Writes a checkpoint archive in one pass: a tar that the runtimes and checkpointctl read, as it is
// or as frames of zstd.
//
//     checkpoint/                a directory entry, which checkpointctl wants
//     checkpoint/NAME            the engine's image files; pages-*.img begin at multiples of 4096
//     checkpoint/parent/NAME     those of the checkpoint that it is based on
//     config.dump, spec.dump …   what the caller adds
//     stasis-manifest.json       size and digest of all the others
//
// The file has its name only once it is whole and durable:
// docs/decisions/0004-the-archive-is-written-in-one-pass.md
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "archive/compression.h"
#include "archive/manifest.h"
#include "archive/pending_file.h"
#include "archive/tar_format.h"
#include "archive/tar_output.h"
#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

/// What the manifest tells besides the members.
struct CheckpointTimes {
  std::chrono::microseconds frozen{};
  std::chrono::microseconds total{};
};

class ArchiveWriter {
 public:
  /// Begins the archive that is to be `location`, an absolute path. InvalidArgument: it is not.
  /// AlreadyExists: it is there. NotFound, PermissionDenied: its folder is missing, or not
  /// writable.
  static Result<std::unique_ptr<ArchiveWriter>> Create(
      const std::string& location, const std::optional<Compression>& compression = std::nullopt);

  ArchiveWriter(const ArchiveWriter&) = delete;
  ArchiveWriter& operator=(const ArchiveWriter&) = delete;
  /// Nothing stays on disk unless Commit() was OK.
  ~ArchiveWriter();

  /// Takes the engine's image files.
  engine::ImageSink& images() { return images_; }

  /// Adds a whole member. Its name must be a plain one that is not used yet.
  Status AddMember(std::string_view name, std::string_view bytes);

  /// Adds the regular file behind `fd`, from its start to the end that it has now.
  Status AddFile(std::string_view name, int fd);

  /// A member whose length is known when it is finished. One stream (of images or members) at a
  /// time.
  Result<std::unique_ptr<engine::ImageStream>> OpenMember(std::string_view name);

  /// Whether a container stands still until what is written from here on is taken: what is to be
  /// compressed waits for that meanwhile, in a file without a name beside the archive.
  void Hurry(bool hurried) { output_->Hurry(hurried); }

  /// `wanted` is asked now and then while what waited is compressed, and before the archive gets its name: what it
  /// says but OK is what Commit() says then, and there is no archive.
  void StopUnless(const std::function<Status()>& wanted) {
    wanted_ = wanted;
    output_->StopUnless(wanted);
  }

  /// Ends the archive: manifest, end mark, fsync, the name. AlreadyExists: another took the name.
  Status Commit(const CheckpointTimes& times, const std::vector<std::string>& notes);

  /// That it takes of the disk by now. For the thread that writes.
  std::uint64_t disk_bytes() const { return output_->disk_bytes(); }
  /// Of the file, once committed.
  std::uint64_t size_bytes() const { return output_->file_bytes(); }
  /// Once committed; unset where nothing was compressed.
  std::optional<CompressionReport> compression_report() const;

 private:
  class Stream;
  class Images : public engine::ImageSink {
   public:
    explicit Images(ArchiveWriter& writer) : writer_(writer) {}
    Result<std::unique_ptr<engine::ImageStream>> Open(std::string_view name,
                                                      std::uint64_t size_bytes) override;
    Status Fill(std::span<const engine::ImageContent> files,
                const engine::PassedOn& passed_on) override;
    Status BeginIncrement() override { return writer_.BeginIncrement(); }

   private:
    ArchiveWriter& writer_;
  };

  ArchiveWriter(PendingFile file, const std::optional<Compression>& compression);
  Result<std::unique_ptr<Stream>> BeginMember(const std::string& name, const std::uint64_t* size);
  Status WriteHeaders(const std::string& name, std::uint64_t size);
  Status EndMember(std::uint64_t size, bool size_was_known);
  Status BeginIncrement();
  Status WriteHeader(const TarHeader& header);
  Status PutHeader(std::uint64_t position, const TarHeader& header);
  Status AwaitFilled();
  Status Write(std::span<const std::byte> bytes);
  Status Write(std::string_view text);
  Status Written(const Status& status, std::uint64_t bytes);

  PendingFile file_;
  Images images_;
  std::function<Status()> wanted_;
  const bool compressed_;
  std::unique_ptr<TarOutput> output_;
  std::uint64_t position_ = 0;         ///< In the tar.
  std::uint64_t header_position_ = 0;  ///< Of the member that is being written.
  TarHeader header_ = {};
  std::int64_t mtime_ = 0;
  bool stream_open_ = false;
  bool broken_ = false;  ///< A member was cut short: there is no archive to commit.
  /// An image file that was written.
  struct Image {
    std::uint64_t header_position;
    std::size_t member;  ///< In members_.
  };
  std::vector<Image> image_files_;
  std::set<std::string> names_;
  std::vector<Manifest::Member> members_;
};

}  // namespace stasis::archive
