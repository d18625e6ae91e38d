#include "archive/inspect.h"

#include <cstdlib>
#include <filesystem>

#include "archive/process_memory.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"
#include "unit/archive/archives.h"

namespace stasis::archive {
namespace {

using stasis::testing::IsOk;
using stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kContainerd[] = "unit/testdata/archives/containerd-2.1.9-criu-4.2.1-counter.tar";

TEST(InspectTest, ShowsPodContainerProcessesAndFiles) {
  const auto found = Inspect(**Archive::Open(kContainerd));
  ASSERT_THAT(found, IsOk());
  EXPECT_EQ(found->spec.pod, "p1");
  EXPECT_EQ(found->spec.container, "counter");
  EXPECT_EQ(found->spec.engine, "containerd");
  EXPECT_EQ(found->config.rootfs_image_name, "localhost/busybox:1");
  ASSERT_EQ(found->processes.size(), 2u);
  EXPECT_THAT(found->processes[0].command, ElementsAre("/bin/sh", "-c", HasSubstr("echo kept")));
  EXPECT_EQ(found->processes[0].saved_bytes, 73728u);
  EXPECT_EQ(found->processes[1].pid, 23u);
  EXPECT_EQ(found->processes[1].parent, 1u);
  EXPECT_THAT(found->processes[1].command, ElementsAre("sleep", "0.2"));
  ASSERT_EQ(found->processes[0].files.size(), 4u);
  EXPECT_EQ(found->processes[0].files[0].description, "/dev/null");
  EXPECT_EQ(found->processes[0].files[3].description, "/tmp/log");
  EXPECT_EQ(found->pages_bytes, 73728u + 65536u);
  EXPECT_GT(found->frozen->count(), 0);
}

TEST(InspectTest, ReadsAPlainFolderOfImages) {
  const TempFolder folder;
  ASSERT_EQ(std::system(("tar -xf " + std::string(kContainerd) + " -C " + folder.path()).c_str()),
            0);
  const auto found = Inspect(**Archive::Open(folder / "checkpoint"));
  ASSERT_THAT(found, IsOk());
  EXPECT_EQ(found->processes.size(), 2u);
  EXPECT_EQ(found->config.name, "");
}

TEST(InspectTest, NamesTheProcessWhoseImagesAreBroken) {
  const TempFolder folder;
  ASSERT_EQ(std::system(("tar -xf " + std::string(kContainerd) + " -C " + folder.path()).c_str()),
            0);
  const std::string core = folder / "checkpoint/core-23.img";
  Spill(core, Slurp(core).substr(0, 100));
  EXPECT_THAT(Inspect(**Archive::Open(folder.path())),
              StatusIs(StatusCode::kDataLoss, HasSubstr("pid 23")));
}

TEST(InspectTest, RefusesAFolderWithoutACheckpoint) {
  const TempFolder folder;
  EXPECT_THAT(Inspect(**Archive::Open(folder.path())),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("no checkpoint")));
}

TEST(ProcessMemoryTest, RefusesRunsThatOverlapOrNeverEnd) {
  for (const std::uint64_t count : {std::uint64_t{1} << 62, std::uint64_t{2}}) {
    engine::ImageFileBuilder builder("pagemap");
    image::PagemapHead head;
    head.set_pages_id(1);
    ASSERT_THAT(builder.Add(head), IsOk());
    for (const std::uint64_t address : {0x1000, 0x2000}) {
      image::PagemapEntry entry;
      entry.set_vaddr(address);
      entry.set_compat_nr_pages(0);
      entry.set_nr_pages(count);
      entry.set_flags(4);
      ASSERT_THAT(builder.Add(entry), IsOk());
    }
    const TempFolder folder;
    Spill(folder / "pagemap-1.img", builder.bytes());
    const auto images = engine::OpenDirectorySource(folder.path());
    EXPECT_THAT(ProcessMemory::Open(**images, 1), StatusIs(StatusCode::kInvalidArgument));
  }
}

struct PagesAt {
  std::uint64_t address, count;
  std::uint32_t flags;
};
constexpr std::uint32_t kInParent = 1, kPresent = 4;

std::string PageMapOf(std::initializer_list<PagesAt> runs) {
  engine::ImageFileBuilder builder("pagemap");
  image::PagemapHead head;
  head.set_pages_id(1);
  EXPECT_THAT(builder.Add(head), IsOk());
  for (const PagesAt& run : runs) {
    image::PagemapEntry entry;
    entry.set_vaddr(run.address);
    entry.set_compat_nr_pages(0);
    entry.set_nr_pages(run.count);
    entry.set_flags(run.flags);
    EXPECT_THAT(builder.Add(entry), IsOk());
  }
  return std::string(builder.bytes());
}

TEST(ProcessMemoryTest, GoesOnInTheCheckpointThatThisOneIsBasedOn) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "parent");
  Spill(folder / "pagemap-1.img", PageMapOf({{0x1000, 1, kInParent}, {0x2000, 1, kPresent}}));
  Spill(folder / "pages-1.img", std::string(4096, 'y'));
  Spill(folder / "parent/pagemap-1.img", PageMapOf({{0x0, 4, kPresent}}));
  Spill(folder / "parent/pages-1.img",
        std::string(4096, 'a') + std::string(4096, 'b') + std::string(8192, 'c'));
  const auto images = engine::OpenDirectorySource(folder.path());
  const auto memory = ProcessMemory::Open(**images, 1);
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(memory->saved_bytes(), 8192u);
  EXPECT_EQ(*memory->Read(0x1ffe, 4), "bbyy");
}

}  // namespace
}  // namespace stasis::archive
