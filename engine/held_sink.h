// Holds small image files in memory while a tree stands still, so that it need not wait for a disk.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/image/image_io.h"

namespace stasis::engine {

/// Files that together fit into kMostBytes are held until PassOn(); others go through at once.
class HeldSink : public ImageSink {
 public:
  static constexpr std::uint64_t kMostBytes = std::uint64_t{32} << 20;

  explicit HeldSink(ImageSink& sink) : sink_(sink) {}

  Result<std::unique_ptr<ImageStream>> Open(std::string_view name,
                                            std::uint64_t size_bytes) override;
  /// FailedPrecondition while files are held.
  Status BeginIncrement() override;

  /// Puts what is held into the sink, and gives its memory back.
  Status PassOn();

 private:
  class Stream;
  struct File {
    std::string name;
    std::vector<std::byte> bytes;
    std::uint64_t size_bytes = 0;
  };

  ImageSink& sink_;
  std::list<File> files_;
  std::uint64_t held_bytes_ = 0;
};

}  // namespace stasis::engine
