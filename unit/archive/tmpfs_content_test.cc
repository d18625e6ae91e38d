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
  EXPECT_THAT(Read(*content), ElementsAre(Pair("./", ""), Pair("./fd", "/proc/self/fd"),
                                          Pair("./fifo", ""), Pair("./pts/", ""),
                                          Pair("./pts/file", "text"), Pair("./pts/inner/", "")));
}

TEST_F(TmpfsContentTest, PutsAllBackIntoANewFileSystem) {
  std::filesystem::create_directory(folder_ + "/from");
  std::filesystem::create_directory(folder_ + "/to");
  const std::string from = folder_ + "/from/", to = folder_ + "/to/";
  std::ofstream(from + "file") << "text";
  std::filesystem::create_hard_link(from + "file", from + "second");
  std::filesystem::create_symlink("/etc/passwd", from + "link");
  std::ofstream(from + "holes") << "begin";
  std::filesystem::resize_file(from + "holes", 10 << 20);
  std::ofstream(from + "hole").flush();  // makes it
  std::filesystem::resize_file(from + "hole", 1 << 20);
  ASSERT_EQ(::chmod((from + "file").c_str(), 04711), 0);
  ASSERT_EQ(::chmod(from.c_str(), 01733), 0);
  const UniqueFd source(::open(from.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const UniqueFd target(::open(to.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const auto tar = ReadTmpfsContent(source.get(), 1 << 20);
  ASSERT_THAT(tar, IsOk());
  ASSERT_THAT(RestoreWholeTmpfs(target.get(), *tar, 1 << 20, {}), IsOk());

  struct stat st = {}, second = {};
  ASSERT_EQ(::stat((to + "file").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 04711u);
  ASSERT_EQ(::stat((to + "second").c_str(), &second), 0);
  EXPECT_EQ(st.st_ino, second.st_ino);
  EXPECT_EQ(std::filesystem::read_symlink(to + "link"), "/etc/passwd");
  for (const auto& [name, size] : {std::pair("holes", 10 << 20), std::pair("hole", 1 << 20)}) {
    ASSERT_EQ(::stat((to + name).c_str(), &st), 0);
    EXPECT_EQ(st.st_size, size) << name;
    EXPECT_LT(st.st_blocks, 64) << name;
  }
  ASSERT_EQ(::stat(to.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 01733u);
}

TEST_F(TmpfsContentTest, DoesNotLeaveTheFolderForALinkOfTheTars) {
  std::filesystem::create_directory(folder_ + "/to");
  const UniqueFd target(::open((folder_ + "/to").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (const auto& [link, path] : {std::pair("./out", "./out/file"), std::pair("./x", "./../file"),
                                   std::pair("./y", "/file")}) {
    std::string tar(64 << 10, '\0');
    std::size_t used = 0;
    const WriteHandle writer(archive_write_new());
    archive_write_set_format_pax(writer.get());
    archive_write_open_memory(writer.get(), tar.data(), tar.size(), &used);
    const EntryHandle entry(archive_entry_new());
    archive_entry_set_pathname(entry.get(), link);
    archive_entry_set_filetype(entry.get(), AE_IFLNK);
    archive_entry_set_symlink(entry.get(), folder_.c_str());
    archive_write_header(writer.get(), entry.get());
    archive_entry_clear(entry.get());
    archive_entry_set_pathname(entry.get(), path);
    archive_entry_set_filetype(entry.get(), AE_IFREG);
    archive_write_header(writer.get(), entry.get());
    archive_write_close(writer.get());
    EXPECT_FALSE(RestoreWholeTmpfs(target.get(), {tar.data(), used}, 99, {}).ok()) << path;
    EXPECT_FALSE(std::filesystem::exists(folder_ + "/file")) << path;
  }
}

TEST_F(TmpfsContentTest, RefusesMoreThanTheLimit) {
  std::ofstream(folder_ + "/a") << "text";
  EXPECT_THAT(ReadTmpfsContent(fd_.get(), 3), StatusIs(StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace stasis::archive
