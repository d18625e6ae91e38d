#include "engine/held_sink.h"

#include <utility>

namespace stasis::engine {

class HeldSink::Stream : public ImageStream {
 public:
  explicit Stream(File& file) : file_(file) { file_.bytes.reserve(file.size_bytes); }

  Status Write(std::span<const std::byte> bytes) override {
    file_.bytes.insert(file_.bytes.end(), bytes.begin(), bytes.end());
    return OkStatus();
  }
  Status Finish() override {
    if (file_.bytes.size() == file_.size_bytes) return OkStatus();
    return FailedPrecondition(file_.name + ": not as many bytes as announced");
  }

 private:
  File& file_;
};

Result<std::unique_ptr<ImageStream>> HeldSink::Open(std::string_view name,
                                                    std::uint64_t size_bytes) {
  if (size_bytes > kMostBytes - held_bytes_) return sink_.Open(name, size_bytes);
  held_bytes_ += size_bytes;
  files_.push_back({.name = std::string(name), .bytes = {}, .size_bytes = size_bytes});
  return std::make_unique<Stream>(files_.back());
}

Status HeldSink::BeginIncrement() {
  if (!files_.empty()) return FailedPrecondition("image files are still held in memory");
  return sink_.BeginIncrement();
}

Status HeldSink::PassOn() {
  for (; !files_.empty(); files_.pop_front()) {
    const File& file = files_.front();
    ASSIGN_OR_RETURN(const auto stream, sink_.Open(file.name, file.bytes.size()));
    RETURN_IF_ERROR(stream->Write(file.bytes));
    RETURN_IF_ERROR(stream->Finish());
  }
  held_bytes_ = 0;
  return OkStatus();
}

}  // namespace stasis::engine
