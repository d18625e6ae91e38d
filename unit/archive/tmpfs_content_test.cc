#include "archive/tmpfs_content.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "archive/libarchive.h"
#include "engine/base/io.h"
#include "unit/support/matchers.h"

namespace stasis::archive {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::Pair;

class TmpfsContentTest : public ::testing::Test {
 protected:
  TmpfsContentTest() {
    char name[] = "/tmp/tmpfs-content-XXXXXX";
    folder_ = ::mkdtemp(name);
    fd_ = UniqueFd(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  ~TmpfsContentTest() override { std::filesystem::remove_all(folder_); }

  // Each name with its content or, of a link, where it leads.
  std::map<std::string, std::string> Read(const std::string& tar) {
    const ReadHandle reader(archive_read_new());
    archive_read_support_format_tar(reader.get());
    archive_read_support_filter_gzip(reader.get());
    EXPECT_EQ(archive_read_open_memory(reader.get(), tar.data(), tar.size()), ARCHIVE_OK);
    EXPECT_EQ(tar.substr(0, 2), "\x1f\x8b") << "not gzip, which CRIU's tar insists on";
    std::map<std::string, std::string> entries;
    archive_entry* entry = nullptr;
    while (archive_read_next_header(reader.get(), &entry) == ARCHIVE_OK) {
      const char* const link = archive_entry_symlink(entry);
      std::string text(static_cast<std::size_t>(archive_entry_size(entry)), '\0');
      archive_read_data(reader.get(), text.data(), text.size());
      entries[archive_entry_pathname(entry)] = link != nullptr ? link : text;
    }
    return entries;
  }

  std::string folder_;
  UniqueFd fd_;
};

TEST_F(TmpfsContentTest, HasFoldersFilesAndLinks) {
  std::filesystem::create_directories(folder_ + "/pts/inner");
  std::filesystem::create_symlink("/proc/self/fd", folder_ + "/fd");
  std::ofstream(folder_ + "/pts/file") << "text";
  ASSERT_EQ(::mkfifo((folder_ + "/fifo").c_str(), 0600), 0);
  const auto content = ReadTmpfsContent(fd_.get(), 4);
  ASSERT_THAT(content, IsOk());
  EXPECT_THAT(Read(*content),
              ElementsAre(Pair("./fd", "/proc/self/fd"), Pair("./fifo", ""), Pair("./pts/", ""),
                          Pair("./pts/file", "text"), Pair("./pts/inner/", "")));
}

TEST_F(TmpfsContentTest, RefusesMoreThanTheLimit) {
  std::ofstream(folder_ + "/a") << "text";
  EXPECT_THAT(ReadTmpfsContent(fd_.get(), 3), StatusIs(StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace stasis::archive
