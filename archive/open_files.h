#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/files.pb.h"

namespace stasis::archive {

struct DescribedFile {
  std::uint32_t fd = 0;
  std::string kind;         ///< "file", "pipe", "tcp", "unix", "eventfd", …
  std::string description;  ///< A path, "0.0.0.0:6379 listening", "@abstract", "".
  bool is_socket = false;
};

/// What the images tell about open files, in words.
class OpenFiles {
 public:
  static Result<OpenFiles> Read(const engine::ImageSource& images);

  /// The descriptors of table `files_id`, by rising number.
  Result<std::vector<DescribedFile>> OfTable(std::uint32_t files_id) const;

  /// The path of a regular file or folder; empty for others.
  std::string PathOf(std::uint32_t file_id) const;

 private:
  explicit OpenFiles(const engine::ImageSource& images) : images_(images) {}
  DescribedFile Describe(const image::FileEntry& entry) const;

  const engine::ImageSource& images_;
  std::unordered_map<std::uint32_t, image::FileEntry> files_;
  std::unordered_map<std::uint64_t, std::string> memfd_names_;
};

}  // namespace stasis::archive
