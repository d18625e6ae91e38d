// Holds small image files in memory while a tree stands still, so that it need not wait for a disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "engine/image/image_io.h"

namespace stasis::engine {

/// Files that together fit into kMostBytes are held until PassOn(); others go through at once. Of more than
/// kFarMore, only the first kBytesOfMany are held (Prepare tells): the tree waits for nearly all of it anyway.
class HeldSink : public ImageSink {
 public:
  static constexpr std::uint64_t kMostBytes = std::uint64_t{31} << 20;
  static constexpr std::uint64_t kFarMore = std::uint64_t{48} << 20;
  static constexpr std::uint64_t kBytesOfMany = std::uint64_t{8} << 20;

  explicit HeldSink(ImageSink& sink);
  HeldSink(const HeldSink&) = delete;
  HeldSink& operator=(const HeldSink&) = delete;
  ~HeldSink() override;

  /// Takes memory for files of `bytes` in all, as far as they can be held, while nobody waits for it.
  /// Of more, the sink makes ready for `files`, too.
  void Prepare(std::uint64_t bytes, std::size_t files);

  Result<std::unique_ptr<ImageStream>> Open(std::string_view name,
                                            std::uint64_t size_bytes) override;
  /// A file of `size_bytes` that is held, for the caller to fill before PassOn(), by any thread; nothing when there is
  /// no room for it.
  std::optional<std::span<std::byte>> Hold(std::string_view name, std::uint64_t size_bytes);
  /// Those are not held.
  Status Fill(std::span<const ImageContent> files, const PassedOn& passed_on) override {
    return sink_.Fill(files, passed_on);
  }
  /// FailedPrecondition while files are held.
  Status BeginIncrement() override;

  /// Puts what is held into the sink, and gives its memory back on the way: the sink may take some, too.
  Status PassOn();

 private:
  class Stream;
  struct File {
    std::string name;
    std::span<std::byte> bytes;  // of the arena
  };

  ImageSink& sink_;
  std::list<File> files_;
  std::byte* arena_ = nullptr;  // of kMostBytes; null when there is none
  std::uint64_t limit_ = kMostBytes;
  std::uint64_t held_bytes_ = 0;
};

}  // namespace stasis::engine
