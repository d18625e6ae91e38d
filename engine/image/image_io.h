// Where image files go to and come from. The engine knows no more of an archive than this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {

/// Fills `target` with what is at `offset` of something; called by several threads at once.
using ReadPiece = std::function<Status(std::uint64_t offset, std::span<std::byte> target)>;
/// Told of so many bytes more that are on their way; an error of it ends the rest.
using PassedOn = std::function<Status(std::uint64_t bytes)>;
using WritePiece = std::function<Status(std::span<const std::byte> bytes)>;

/// Reads `size` bytes, and writes them, piece by piece.
Status FillInOrder(std::uint64_t size, const ReadPiece& read, const WritePiece& write,
                   const PassedOn& passed_on);

/// One image file that is being written. Destroying it before Finish() leaves the checkpoint broken:
/// the sink's owner then drops the whole.
class ImageStream {
 public:
  virtual ~ImageStream() = default;
  virtual Status Write(std::span<const std::byte> bytes) = 0;
  /// The next `size` bytes, which `read` gives, in pieces of some size and in any order. All of them have been read
  /// when it returns, whatever it returns. `passed_on` is called by the caller's thread.
  virtual Status Fill(std::uint64_t size, const ReadPiece& read, const PassedOn& passed_on);
  /// Ends the file. FailedPrecondition when fewer bytes came than announced.
  virtual Status Finish() = 0;
};

/// A file of `size` bytes, which `read` gives.
struct ImageContent {
  std::string name;
  std::uint64_t size = 0;
  ReadPiece read;
};

/// Takes the files of one checkpoint, in the order in which they become ready. One stream at a time.
/// Names are plain file names ("core-1.img"), each used once.
class ImageSink {
 public:
  virtual ~ImageSink() = default;
  /// A file of exactly `size_bytes`, whose content follows. ResourceExhausted: the disk is full.
  virtual Result<std::unique_ptr<ImageStream>> Open(std::string_view name,
                                                    std::uint64_t size_bytes) = 0;
  /// Several files, which are read at the same time where that is faster; as ImageStream::Fill.
  virtual Status Fill(std::span<const ImageContent> files, const PassedOn& passed_on);
  /// Makes ready for some `files` to come, while nobody waits for them.
  virtual void Prepare(std::size_t files) { (void)files; }
  /// What was put so far becomes the checkpoint that the files to come are based on: all its names get
  /// `parent/` in front, and are free again.
  virtual Status BeginIncrement() = 0;
  /// A small file, whole.
  Status Put(std::string_view name, std::string_view bytes);
};

/// Where the bytes of an image file are.
struct ImagePlace {
  UniqueFd fd;               ///< Read-only, of our own.
  std::uint64_t offset = 0;  ///< Of the first byte.
  /// `fd` is of zstd frames with a seek table, whose content `offset` counts in: frames::FramedFile.
  bool compressed = false;
};

/// Gives the files of one checkpoint, at random and from several threads at once. Everything that it
/// gives is untrusted input. Those of the checkpoint that an incremental one is based on are "parent/NAME".
class ImageSource {
 public:
  virtual ~ImageSource() = default;
  virtual std::vector<std::string> Names() const = 0;
  /// Bytes of file `name`; NotFound when there is none.
  virtual Result<std::uint64_t> Size(std::string_view name) const = 0;
  /// Fills `bytes` from `offset` of file `name`; DataLoss when the file ends before.
  virtual Status ReadAt(std::string_view name, std::uint64_t offset,
                        std::span<std::byte> bytes) const = 0;
  /// For who reads it later, and without the source. Unimplemented: there is no such place.
  virtual Result<ImagePlace> Locate(std::string_view name) const;
  /// The whole of a small file. NotFound; ResourceExhausted above `limit_bytes`.
  Result<std::string> Get(std::string_view name,
                          std::uint64_t limit_bytes = std::uint64_t{256} << 20) const;
};

/// A plain directory of image files, as CRIU's tools write it; pending_images.h writes one.
Result<std::unique_ptr<ImageSource>> OpenDirectorySource(const std::string& path);

}  // namespace stasis::engine
