// Archives in frames of zstd: written by us, read by us and by the standard tools, and hostile ones.
#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>
#include <zstd.h>

#include <cstdlib>
#include <random>
#include <thread>

#include "archive/checkpoint_image.h"
#include "engine/frames/seek_table.h"
#include "unit/archive/archives.h"

namespace stasis::archive {
namespace {

using stasis::testing::IsOk;
using stasis::testing::StatusIs;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::size_t kMiB = std::size_t{1} << 20;

// Half of it compresses, half does not.
std::string Memory(std::size_t bytes) {
  std::minstd_rand random(static_cast<unsigned>(bytes));
  std::string memory(bytes, 'm');
  for (std::size_t at = 0; at < bytes; at += 2) memory[at] = static_cast<char>(random());
  return memory;
}

Result<std::unique_ptr<ArchiveWriter>> Create(const std::string& path) {
  return ArchiveWriter::Create(path, Compression{.level = 1});
}

Status Finish(ArchiveWriter& writer) {
  RETURN_IF_ERROR(writer.images().Put("inventory.img", "inventory"));
  RETURN_IF_ERROR(writer.AddMember("config.dump", "{}"));
  RETURN_IF_ERROR(writer.AddMember("spec.dump", "{}"));
  return writer.Commit({}, {});
}

void Write(const std::string& path, const std::vector<NamedBytes>& images) {
  const auto writer = Create(path);
  ASSERT_THAT(writer, IsOk());
  for (const NamedBytes& image : images) {
    ASSERT_THAT((*writer)->images().Put(image.name, image.bytes), IsOk());
  }
  ASSERT_THAT(Finish(**writer), IsOk());
}

int Shell(const std::string& command) { return std::system(command.c_str()); }

// The plain tar of a compressed archive, in other frames of our choice and with a table of our choice.
std::string Frame(std::string_view content) {
  std::string frame(ZSTD_compressBound(content.size()), '\0');
  frame.resize(ZSTD_compress(frame.data(), frame.size(), content.data(), content.size(), 1));
  return frame;
}

TEST(CompressedArchiveTest, IsReadInPlaceAndVerified) {
  const TempFolder folder;
  const std::string memory = Memory(5 * kMiB + 4096);
  Write(folder / "a.tar", {{"pages-1.img", memory}, {"core-1.img", ""}, {"mm-1.img", "mm"}});
  // Unpacking it would fail.
  const auto archive = Archive::Open(folder / "a.tar", {.scratch_folder = "/nowhere"});
  ASSERT_THAT(archive, IsOk());
  EXPECT_TRUE((*archive)->compressed());
  EXPECT_LT((*archive)->file_size(), (*archive)->tar_size());
  EXPECT_EQ(*(*archive)->images().Get("pages-1.img"), memory);
  EXPECT_EQ(*(*archive)->images().Get("core-1.img"), "");
  EXPECT_EQ(*(*archive)->images().Get("mm-1.img"), "mm");
  const Result<Verification> verified = Verify(**archive);
  ASSERT_THAT(verified, IsOk());
  EXPECT_TRUE(verified->has_manifest);
  EXPECT_THAT(verified->problems, IsEmpty());
}

TEST(CompressedArchiveTest, UnpacksToTheTarThatIsWrittenWithoutCompression) {
  const TempFolder folder;
  Write(folder / "a.tar.zst",
        {{"core-1.img", "core"}, {"pages-1.img", "PAGES" + Memory(3 * kMiB)}});
  ASSERT_EQ(Shell("cd " + folder.path() +
                  " && zstd -qt a.tar.zst && zstd -qd a.tar.zst && "
                  "tar --zstd -tf a.tar.zst >/dev/null && tar -tf a.tar >/dev/null"),
            0);
  EXPECT_EQ(Slurp(folder / "a.tar").find("PAGES") % 4096, 0u);
  const auto plain = Archive::Open(folder / "a.tar");
  ASSERT_THAT(plain, IsOk());
  EXPECT_FALSE((*plain)->compressed());
  EXPECT_THAT(Verify(**plain)->problems, IsEmpty());
}

TEST(CompressedArchiveTest, IsReadBySeveralThreadsAtOnce) {
  const TempFolder folder;
  const std::string memory = Memory(12 * kMiB);  // more than is remembered
  Write(folder / "a.tar", {{"pages-1.img", memory}});
  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  const auto read = [&](unsigned seed) {
    std::minstd_rand random(seed);
    std::string piece(70'000, '\0');
    for (int i = 0; i < 200; ++i) {
      const std::size_t at = random() % (memory.size() - piece.size());
      const auto bytes = std::as_writable_bytes(std::span(piece.data(), piece.size()));
      ASSERT_THAT((*archive)->images().ReadAt("pages-1.img", at, bytes), IsOk());
      ASSERT_EQ(piece, memory.substr(at, piece.size()));
    }
  };
  std::vector<std::jthread> readers;
  for (unsigned seed = 1; seed <= 3; ++seed) readers.emplace_back(read, seed);
}

TEST(CompressedArchiveTest, ImagesBecomeThoseOfTheParentAndStreamsGetTheirSize) {
  const TempFolder folder;
  const auto writer = Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  ASSERT_THAT((*writer)->images().Put("pages-1.img", Memory(2 * kMiB)), IsOk());
  ASSERT_THAT((*writer)->images().BeginIncrement(), IsOk());
  ASSERT_THAT((*writer)->images().Put("pages-1.img", "young"), IsOk());
  auto stream = (*writer)->OpenMember("rootfs-diff.tar");
  ASSERT_THAT(stream, IsOk());
  ASSERT_THAT((*stream)->Write(std::as_bytes(std::span("abc", 3))), IsOk());
  ASSERT_THAT((*stream)->Finish(), IsOk());
  ASSERT_THAT(Finish(**writer), IsOk());
  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  EXPECT_EQ(*(*archive)->images().Get("parent/pages-1.img"), Memory(2 * kMiB));
  EXPECT_EQ(*(*archive)->images().Get("pages-1.img"), "young");
  EXPECT_EQ(*(*archive)->Get("rootfs-diff.tar"), "abc");
  EXPECT_THAT(Verify(**archive)->problems, IsEmpty());
}

TEST(CompressedArchiveTest, WhatIsNotWantedAnyMoreIsNotCompressedToItsEnd) {
  const TempFolder folder;
  const auto writer = Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  int asked = 0;
  (*writer)->StopUnless([&] { return ++asked < 3 ? OkStatus() : Cancelled("it was cancelled"); });
  (*writer)->Hurry(true);
  ASSERT_THAT((*writer)->images().Put("pages-1.img", Memory(3 * kMiB)), IsOk());
  (*writer)->Hurry(false);
  EXPECT_THAT(Finish(**writer), StatusIs(StatusCode::kCancelled));
  EXPECT_EQ(asked, 3);
  EXPECT_THAT((*writer)->Commit({}, {}), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_NE(::access((folder / "a.tar").c_str(), F_OK), 0);
}

TEST(CompressionTest, TheHighestLevelsAreTheAdministrators) {
  EXPECT_EQ((*ParseUsersCompression("zstd:9"))->level, 9);
  EXPECT_EQ(*ParseUsersCompression("none"), std::nullopt);
  EXPECT_THAT(ParseUsersCompression("zstd:10"), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_EQ((*ParseCompression("zstd:19"))->level, 19);
}

TEST(CompressedArchiveTest, WhatIsWrittenInAHurryIsCompressedAfterwards) {
  const TempFolder folder;
  const auto writer = Create(folder / "a.tar");
  ASSERT_THAT(writer, IsOk());
  ASSERT_THAT((*writer)->images().Put("pages-1.img", "before"), IsOk());
  (*writer)->Hurry(true);
  ASSERT_THAT((*writer)->images().Put("pages-2.img", Memory(3 * kMiB)), IsOk());
  auto stream = (*writer)->OpenMember("rootfs-diff.tar");
  ASSERT_THAT((*stream)->Write(std::as_bytes(std::span("in two ", 7))), IsOk());
  (*writer)->Hurry(false);
  ASSERT_THAT((*stream)->Write(std::as_bytes(std::span("halves", 6))), IsOk());
  ASSERT_THAT((*stream)->Finish(), IsOk());
  ASSERT_THAT((*writer)->images().BeginIncrement(), IsOk());
  ASSERT_THAT(Finish(**writer), IsOk());
  EXPECT_THAT((*writer)->compression_report()->ratio(), Gt(1));
  EXPECT_THAT(folder.Names(), ElementsAre("a.tar"));
  const auto archive = Archive::Open(folder / "a.tar");
  ASSERT_THAT(archive, IsOk());
  EXPECT_EQ(*(*archive)->images().Get("parent/pages-1.img"), "before");
  EXPECT_EQ(*(*archive)->images().Get("parent/pages-2.img"), Memory(3 * kMiB));
  EXPECT_EQ(*(*archive)->Get("rootfs-diff.tar"), "in two halves");
  EXPECT_THAT(Verify(**archive)->problems, IsEmpty());
}

TEST(CompressedArchiveTest, AFullDiskOrOneThatIsGivenUpLeavesNothing) {
  const TempFolder folder;
  ASSERT_EQ(::mount("stasis-test", folder.path().c_str(), "tmpfs", 0, "size=1m"), 0)
      << "needs root to mount a small tmpfs";
  const absl::Cleanup unmount = [&] { ::umount2(folder.path().c_str(), MNT_DETACH); };
  for (const bool hurried : {false, true}) {
    const auto writer = Create(folder / "a.tar");
    ASSERT_THAT(writer, IsOk());
    (*writer)->Hurry(hurried);
    Status status = (*writer)->AddMember("dump.log", Memory(16 * kMiB));
    (*writer)->Hurry(false);
    if (status.ok()) status = (*writer)->Commit({}, {});
    EXPECT_THAT(status, StatusIs(StatusCode::kResourceExhausted, HasSubstr("free space")));
    EXPECT_THAT((*writer)->Commit({}, {}), StatusIs(StatusCode::kFailedPrecondition));
  }
  const auto given_up = Create(folder / "b.tar");
  ASSERT_THAT((*given_up)->AddMember("dump.log", "content"), IsOk());
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(CompressedArchiveTest, AnImageOfItHasItAsItsLayer) {
  const TempFolder folder;
  const auto writer = Create(folder / "a.tar");
  ASSERT_THAT((*writer)->images().Put("inventory.img", ""), IsOk());
  ASSERT_THAT((*writer)->AddMember("config.dump", R"({"name":"counter"})"), IsOk());
  ASSERT_THAT((*writer)->AddMember("spec.dump", "{}"), IsOk());
  ASSERT_THAT((*writer)->Commit({}, {}), IsOk());
  const auto archive = Archive::Open(folder / "a.tar");
  const Result<CheckpointImage> image = DescribeImage(**archive);
  ASSERT_THAT(image, IsOk());
  EXPECT_THAT(image->manifest, HasSubstr("layer.v1.tar+zstd"));
  EXPECT_EQ(image->layer_size, std::filesystem::file_size(folder / "a.tar"));
  ASSERT_EQ(Shell("cd " + folder.path() +
                  " && sha256sum a.tar >digests && zstd -dc <a.tar | sha256sum >>digests"),
            0);
  const std::string digests = Slurp(folder / "digests");
  EXPECT_EQ(image->layer_digest, "sha256:" + digests.substr(0, 64));
  EXPECT_THAT(image->config, HasSubstr(digests.substr(digests.find('\n') + 1, 64)));
}

TEST(CompressedArchiveTest, ADamagedFrameIsFound) {
  const TempFolder folder;
  Write(folder / "a.tar", {{"pages-1.img", Memory(2 * kMiB)}});
  std::string bytes = Slurp(folder / "a.tar");
  bytes[bytes.size() / 2] = static_cast<char>(~bytes[bytes.size() / 2]);
  Spill(folder / "b.tar", bytes);
  const auto archive = Archive::Open(folder / "b.tar");
  ASSERT_THAT(archive, IsOk());
  EXPECT_THAT((*archive)->images().Get("pages-1.img"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("zstd frame at byte")));
}

TEST(CompressedArchiveTest, OneThatIsCutShortIsRefusedWhereverItIsCut) {
  const TempFolder folder;
  Write(folder / "a.tar", {{"pages-1.img", Memory(2 * kMiB)}});
  const std::string whole = Slurp(folder / "a.tar");
  for (const std::size_t length :
       {std::size_t{20}, whole.size() / 2, whole.size() - 40, whole.size() - 9, whole.size() - 1}) {
    Spill(folder / "b.tar", whole.substr(0, length));
    const auto archive = Archive::Open(folder / "b.tar", {.scratch_folder = folder.path()});
    // A table that is gone takes nothing with it.
    EXPECT_TRUE(archive.ok() || archive.status().code() == StatusCode::kDataLoss)
        << length << ": " << archive.status();
    if (archive.ok()) {
      EXPECT_THAT(Verify(**archive)->problems, IsEmpty()) << length;
    }
  }
}

TEST(CompressedArchiveTest, ATableThatLiesIsRefused) {
  const TempFolder folder;
  const std::string frame = Frame(TarMember("config.dump", "{}") + TarEnd());
  const auto stored = static_cast<std::uint32_t>(frame.size());
  const std::uint32_t plain = 2048;
  const auto open = [&](const std::vector<frames::FrameSizes>& sizes, const OpenOptions& options) {
    Spill(folder / "a.tar", frame + frames::EncodeSeekTable(sizes));
    return Archive::Open(folder / "a.tar", options).status();
  };
  EXPECT_THAT(open({{stored, plain}}, {}), IsOk());
  for (const std::vector<frames::FrameSizes>& sizes : std::vector<std::vector<frames::FrameSizes>>{
           {},                                                   // of no frame
           {{stored + 1, plain}},                                // beyond the frames
           {{stored - 1, plain}},                                // short of them
           {{stored, plain - 512}},                              // with less content than it has
           {{stored, plain + 512}},                              // with more
           {{stored / 2, plain}, {stored - stored / 2, plain}},  // in the middle of one
           {{0, plain}, {stored, plain}},                        // out of nothing
           {{stored, 1}},                                        // for hardly any content
       }) {
    EXPECT_THAT(open(sizes, {}), StatusIs(StatusCode::kDataLoss));
  }
  EXPECT_THAT(open({{stored, ~std::uint32_t{0}}}, {.max_bytes = 1 << 20}),
              StatusIs(StatusCode::kResourceExhausted));
}

TEST(CompressedArchiveTest, ATableOfTooManyFramesTakesNoMemory) {
  const TempFolder folder;
  std::string table = frames::EncodeSeekTable({});
  table.replace(table.size() - 9, 4, "\xff\xff\xff\x07");
  Spill(folder / "a.tar", Frame(TarEnd()) + table);
  EXPECT_THAT(Archive::Open(folder / "a.tar"), StatusIs(StatusCode::kResourceExhausted));
}

TEST(CompressedArchiveTest, FramesThatAreTooLargeForMemoryAreUnpackedFirst) {
  const TempFolder folder;
  const std::string tar = TarMember("config.dump", std::string(12 * kMiB, 'x')) + TarEnd();
  const std::string frame = Frame(tar);
  const frames::FrameSizes sizes = {static_cast<std::uint32_t>(frame.size()),
                                    static_cast<std::uint32_t>(tar.size())};
  Spill(folder / "a.tar", frame + frames::EncodeSeekTable(std::span(&sizes, 1)));
  const auto archive = Archive::Open(folder / "a.tar", {.scratch_folder = folder.path()});
  ASSERT_THAT(archive, IsOk());
  EXPECT_FALSE((*archive)->compressed());
  EXPECT_EQ(*(*archive)->members().Size("config.dump"), 12 * kMiB);
  EXPECT_THAT(Archive::Open(folder / "a.tar", {.max_bytes = kMiB}),
              StatusIs(StatusCode::kResourceExhausted));
}

TEST(CompressionTest, IsNamedAsElsewhere) {
  EXPECT_EQ((*ParseCompression("zstd"))->level, 3);
  EXPECT_EQ((*ParseCompression("zstd:19"))->level, 19);
  EXPECT_FALSE(ParseCompression("none")->has_value());
  for (const char* const bad : {"", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:3x", "zstd3"}) {
    EXPECT_THAT(ParseCompression(bad), StatusIs(StatusCode::kInvalidArgument)) << bad;
  }
}

TEST(CompressionTest, ANamespaceMayHaveItsOwn) {
  CompressionPolicy policy = {.usual = Compression{.level = 1}, .by_namespace = {}};
  ASSERT_THAT(AddNamespace("batch=zstd:9", policy), IsOk());
  ASSERT_THAT(AddNamespace("web=none", policy), IsOk());
  EXPECT_EQ(policy.For("batch")->level, 9);
  EXPECT_FALSE(policy.For("web"));
  EXPECT_EQ(policy.For("default")->level, 1);
  for (const char* const bad : {"batch", "=zstd", "batch=lz4", "batch="}) {
    EXPECT_THAT(AddNamespace(bad, policy), StatusIs(StatusCode::kInvalidArgument)) << bad;
  }
}

}  // namespace
}  // namespace stasis::archive
