// Folders that go away, archives made by our writer, and tars made by hand.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "archive/archive.h"
#include "archive/archive_writer.h"
#include "archive/tar_format.h"
#include "unit/support/matchers.h"

namespace stasis::archive {

class TempFolder {
 public:
  TempFolder() {
    std::string name = ::testing::TempDir() + "stasis-archive-XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  const std::string& path() const { return path_; }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

 private:
  std::string path_;
};

inline std::string Slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void Spill(const std::string& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

struct NamedBytes {
  std::string name;
  std::string bytes;
};

/// An archive of ours that passes verification.
inline void WriteArchive(const std::string& path, const std::vector<NamedBytes>& images = {},
                         const std::vector<NamedBytes>& members = {}) {
  Result<std::unique_ptr<ArchiveWriter>> writer = ArchiveWriter::Create(path);
  ASSERT_THAT(writer, testing::IsOk());
  for (const NamedBytes& image : images) {
    ASSERT_THAT((*writer)->images().Put(image.name, image.bytes), testing::IsOk());
  }
  ASSERT_THAT((*writer)->images().Put("inventory.img", "inventory"), testing::IsOk());
  for (const NamedBytes& member : members) {
    ASSERT_THAT((*writer)->AddMember(member.name, member.bytes), testing::IsOk());
  }
  ASSERT_THAT((*writer)->AddMember("config.dump", "{}"), testing::IsOk());
  ASSERT_THAT((*writer)->AddMember("spec.dump", "{}"), testing::IsOk());
  ASSERT_THAT((*writer)->Commit({}, {}), testing::IsOk());
}

/// One member of a tar made by hand.
inline std::string TarMember(std::string_view name, std::string_view content,
                             char type = kTarRegular) {
  const TarHeader header = MakeTarHeader(name, type, content.size(), 0600, 0);
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
  bytes += content;
  bytes.resize(RoundUpToBlock(bytes.size()));
  return bytes;
}

inline const std::string& TarEnd() {
  static const std::string kEnd(1024, '\0');
  return kEnd;
}

}  // namespace stasis::archive
