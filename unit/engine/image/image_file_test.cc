#include "engine/image/image_file.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "engine/image/schema/files.pb.h"
#include "engine/image/schema/sockets.pb.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class MemorySource : public ImageSource {
 public:
  std::map<std::string, std::string, std::less<>> content;

  std::vector<std::string> Names() const override { return {}; }
  Result<std::uint64_t> Size(std::string_view name) const override {
    const auto found = content.find(name);
    if (found == content.end()) return NotFound(name);
    return found->second.size();
  }
  Status ReadAt(std::string_view name, std::uint64_t offset,
                std::span<std::byte> bytes) const override {
    std::memcpy(bytes.data(), content.find(name)->second.data() + offset, bytes.size());
    return OkStatus();
  }
};

image::FifoEntry Fifo(std::uint32_t id) {
  image::FifoEntry entry;
  entry.set_id(id);
  entry.set_pipe_id(1);
  return entry;
}

TEST(ImageFileTest, BeginsWithTheMagicsThatCriuWrites) {
  EXPECT_EQ(ImageFileBuilder("inventory").bytes(), "\x16\x31\x31\x58");
  EXPECT_EQ(ImageFileBuilder("pstree").bytes(), "\x19\x43\x56\x54\x30\x30\x27\x50");
  EXPECT_EQ(ImageFileBuilder("stats-dump").bytes(), "\x40\x59\x10\x55\x06\x33\x09\x57");
}

TEST(ImageFileTest, NamesKeysAsCriuDoes) {
  EXPECT_EQ(ImageName("files"), "files.img");
  EXPECT_EQ(ImageName("core", 26), "core-26.img");
  EXPECT_EQ(ImageName("ghost-file", 26), "ghost-file-1a.img");
  EXPECT_EQ(ImageName("stats-dump"), "stats-dump");
  EXPECT_EQ(ImageType("ghost-file-1a"), "ghost-file");
  EXPECT_EQ(ImageType("pagemap-shmem-3.img"), "pagemap-shmem");
  EXPECT_EQ(ImageType("pages-1.img"), "");
}

TEST(ImageFileTest, GivesBackItsRecords) {
  ImageFileBuilder file("files");
  EXPECT_TRUE(file.empty());
  ASSERT_THAT(file.Add(Fifo(1)), IsOk());
  ASSERT_THAT(file.Add(Fifo(2)), IsOk());
  MemorySource source;
  source.content["files.img"] = file.bytes();

  const auto records = ReadRecords<image::FifoEntry>(source, "files.img", "files");
  ASSERT_THAT(records, IsOk());
  ASSERT_THAT(*records, SizeIs(2));
  EXPECT_EQ((*records)[1].id(), 2);
  EXPECT_THAT(ReadOne<image::FifoEntry>(source, "files.img", "files"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("files.img")));
}

TEST(ImageFileTest, KeepsTheBytesAfterEachRecord) {
  ImageFileBuilder file("sk-queues");
  for (const std::string bytes : {"first", "", "third"}) {
    image::SkPacketEntry entry;
    entry.set_id_for(7);
    entry.set_length(static_cast<std::uint32_t>(bytes.size()));
    ASSERT_THAT(file.Add(entry), IsOk());
    file.AddRaw(bytes);
  }
  MemorySource source;
  source.content["sk-queues.img"] = file.bytes();
  const auto records = ReadImageRecords(source, "sk-queues.img", "sk-queues");
  ASSERT_THAT(records, IsOk());
  ASSERT_THAT(*records, SizeIs(3));
  EXPECT_EQ((*records)[0].bytes, "first");
  EXPECT_EQ((*records)[1].bytes, "");
  EXPECT_EQ((*records)[2].bytes, "third");
}

TEST(ImageFileTest, AMissingListIsEmptyAndAMissingRecordIsNotFound) {
  const MemorySource source;
  const auto records = ReadRecords<image::FifoEntry>(source, "files.img", "files");
  ASSERT_THAT(records, IsOk());
  EXPECT_THAT(*records, SizeIs(0));
  EXPECT_THAT(ReadOne<image::FifoEntry>(source, "core-1.img", "core"),
              StatusIs(StatusCode::kNotFound));
}

TEST(ImageFileTest, RefusesToWriteAMessageThatNoReaderTakes) {
  image::FifoEntry entry;
  entry.set_id(1);
  EXPECT_THAT(ImageFileBuilder("files").Add(entry),
              StatusIs(StatusCode::kInternal, HasSubstr("pipe_id")));
}

TEST(ImageFileTest, EveryCutIsNoticed) {
  ImageFileBuilder file("fifo-data");
  image::PipeDataEntry entry;
  entry.set_pipe_id(1);
  entry.set_bytes(4);
  ASSERT_THAT(file.Add(entry), IsOk());
  file.AddRaw("data");
  const std::string whole(file.bytes());
  MemorySource source;
  for (std::size_t length = 0; length < whole.size(); ++length) {
    if (length == 8) continue;  // both magics and no record: an empty list
    source.content["fifo-data.img"] = whole.substr(0, length);
    EXPECT_FALSE(ReadImageRecords(source, "fifo-data.img", "fifo-data").ok()) << length;
  }
}

TEST(ImageFileTest, RefusesStrangeMagicsAndLengths) {
  MemorySource source;
  source.content["files.img"] = ImageFileBuilder("pstree").bytes();
  EXPECT_THAT(ReadRecords<image::FifoEntry>(source, "files.img", "files"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("files.img")));
  source.content["files.img"] = std::string(ImageFileBuilder("files").bytes()) + "\xff\xff\xff\xff";
  EXPECT_THAT(ReadRecords<image::FifoEntry>(source, "files.img", "files"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("files.img")));
  source.content["files.img"] =
      std::string(ImageFileBuilder("files").bytes()) + std::string("\x02\0\0\0\x08\x01", 6);
  EXPECT_THAT(ReadRecords<image::FifoEntry>(source, "files.img", "files"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("offset 8")));
}

}  // namespace
}  // namespace stasis::engine
