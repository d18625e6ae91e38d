// Counts what goes into a sink.
#pragma once

#include <memory>

#include "engine/image/image_io.h"

namespace stasis::engine {

class CountingSink : public ImageSink {
 public:
  explicit CountingSink(ImageSink& sink) : sink_(sink) {}

  Result<std::unique_ptr<ImageStream>> Open(std::string_view name,
                                            std::uint64_t size_bytes) override {
    bytes_ += size_bytes;
    return sink_.Open(name, size_bytes);
  }

  Status Fill(std::span<const ImageContent> files, const PassedOn& passed_on) override {
    for (const ImageContent& file : files) bytes_ += file.size;
    return sink_.Fill(files, passed_on);
  }

  void Prepare(std::size_t files) override { sink_.Prepare(files); }
  Status BeginIncrement() override { return sink_.BeginIncrement(); }

  std::uint64_t bytes() const { return bytes_; }

 private:
  ImageSink& sink_;
  std::uint64_t bytes_ = 0;
};

}  // namespace stasis::engine
