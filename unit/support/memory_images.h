// A checkpoint's image files in memory: a sink that is a source as well.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/image/image_io.h"

namespace stasis::testing {

class MemoryImages : public engine::ImageSink, public engine::ImageSource {
 public:
  Result<std::unique_ptr<engine::ImageStream>> Open(std::string_view name,
                                                    std::uint64_t size_bytes) override {
    if (on_open) RETURN_IF_ERROR(on_open(name));
    if (!files.try_emplace(std::string(name)).second) return AlreadyExists(name);
    order.emplace_back(name);
    return std::make_unique<Stream>(files.find(name)->second, size_bytes);
  }

  Status BeginIncrement() override {
    std::map<std::string, std::string, std::less<>> parent;
    for (auto& [name, bytes] : files) parent.emplace("parent/" + name, std::move(bytes));
    files = std::move(parent);
    for (std::string& name : order) name.insert(0, "parent/");
    return OkStatus();
  }

  std::vector<std::string> Names() const override { return order; }
  Result<std::uint64_t> Size(std::string_view name) const override {
    const auto file = files.find(name);
    if (file == files.end()) return NotFound(name);
    return file->second.size();
  }
  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    const auto file = files.find(name);
    if (file == files.end()) return NotFound(name);
    if (offset > file->second.size() || bytes.size() > file->second.size() - offset) {
      return DataLoss(name);
    }
    std::memcpy(bytes.data(), file->second.data() + offset, bytes.size());
    return OkStatus();
  }

  std::map<std::string, std::string, std::less<>> files;
  std::vector<std::string> order;  ///< In which they came.
  /// Asked before a file is taken.
  std::function<Status(std::string_view name)> on_open;

 private:
  class Stream : public engine::ImageStream {
   public:
    Stream(std::string& bytes, std::uint64_t size_bytes) : bytes_(bytes), size_(size_bytes) {
      bytes_.reserve(size_bytes);
    }
    Status Write(std::span<const std::byte> bytes) override {
      bytes_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      return OkStatus();
    }
    Status Finish() override {
      if (bytes_.size() != size_) return FailedPrecondition("not the announced size");
      return OkStatus();
    }

   private:
    std::string& bytes_;
    std::uint64_t size_;
  };
};

}  // namespace stasis::testing
