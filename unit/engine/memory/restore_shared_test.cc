// MAP_SHARED | MAP_ANONYMOUS memory: one object for all who shared it.
#include <sys/stat.h>

#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;
using namespace testing;  // NOLINT: this folder's fixture

constexpr std::uint64_t kVvar = 0x7ffd'0000'0000;
constexpr std::uint64_t kObject = 77;
constexpr uid_t kNobody = 65534;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

image::VmaEntry& Share(MemoryImage& image, std::uint64_t start, std::uint64_t pages,
                       std::uint64_t offset_pages, int prot = kReadWrite) {
  image::VmaEntry& vma = image.Add(start, pages, prot, MemoryImage::kSharedAnonymous);
  vma.set_shmid(kObject);
  vma.set_pgoff(offset_pages * kPage);
  return vma;
}

// Restores two programs at once, from images in one source.
Status RestoreBoth(FreshProgram& one, MemoryImage& first, FreshProgram& two, MemoryImage& second) {
  first.Finish();
  second.Finish();
  for (const auto& [name, bytes] : second.source.files) first.source.files[name] = bytes;
  std::vector<RestoredProcess> both;
  both.push_back(one.Give());
  both.push_back(two.Give());
  const Status status = RestoreMemory(both, {}, first.source, first.OpenFile(), first.progress);
  one.Take(std::move(both[0]));
  two.Take(std::move(both[1]));
  return status;
}

TEST(RestoreSharedMemoryTest, ProcessesWithoutAnyRightShareItAgain) {
  FreshProgram one(kNobody), two(kNobody);
  MemoryImage first(one, kVvar), second(two, kVvar);
  Share(first, kBase, 4, 0);
  Share(second, kBase + 16 * kPage, 2, 3);  // the last page of the first's, and one behind it
  first.SharedPages(kObject, kPage,
                    PageOf("second") + PageOf("") + PageOf("fourth") + PageOf("end"));
  ASSERT_THAT(RestoreBoth(one, first, two, second), IsOk());

  EXPECT_EQ(one.Read(kBase, 4 * kPage),
            PageOf("") + PageOf("second") + PageOf("") + PageOf("fourth"));
  EXPECT_EQ(two.Read(kBase + 16 * kPage, 2 * kPage), PageOf("fourth") + PageOf("end"));
  ASSERT_THAT(WriteMemory(two.pid(), kBase + 16 * kPage, std::as_bytes(std::span("hello", 5))),
              IsOk());
  EXPECT_EQ(one.Read(kBase + 3 * kPage, 5), "hello");
}

TEST(RestoreSharedMemoryTest, TwoViewsOfOneProcessAreOneObject) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  Share(image, kBase, 2, 0);
  Share(image, kBase + 8 * kPage, 1, 1, PROT_READ);
  Share(image, kBase + 16 * kPage, 1, 0, PROT_READ | PROT_EXEC);
  image.SharedPages(kObject, 0, PageOf("a") + PageOf("b") + PageOf("shown by no area"));
  ASSERT_THAT(image.Restore(), IsOk());
  ASSERT_THAT(WriteMemory(program.pid(), kBase + kPage, std::as_bytes(std::span("c", 1))), IsOk());
  EXPECT_EQ(program.Read(kBase + 8 * kPage, 1), "c");
  EXPECT_EQ(program.Read(kBase + 16 * kPage, 1), "a");
}

TEST(RestoreSharedMemoryTest, ItLooksAsBeforeAndNoDescriptorIsLeft) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  Share(image, kBase, 3, 0);
  image.SharedPages(kObject, 0, PageOf("x"));
  const std::uint64_t lowest = *program.process().remote->Call("dup", SYS_dup, 0);
  ASSERT_THAT(image.Restore(), IsOk());
  EXPECT_EQ(*program.process().remote->Call("dup", SYS_dup, 0), lowest + 1);
  const auto vmas = program.Vmas();
  const auto shared = std::find_if(vmas.begin(), vmas.end(), [](const Vma& v) { return v.shared; });
  ASSERT_NE(shared, vmas.end());
  EXPECT_EQ(shared->path, "/dev/zero (deleted)");
  EXPECT_EQ(shared->size(), 3 * kPage);
}

TEST(RestoreSharedMemoryTest, AMemfdWithoutNameIsSuchMemory) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image::VmaEntry& vma = Share(image, kBase, 1, 0);
  vma.set_status(0x4081);  // as CRIU 4.2 writes it
  vma.set_flags(MAP_SHARED);
  vma.set_shmid(9);
  CheckpointImages images;
  image::FileEntry& file = images.files.emplace_back();
  file.set_type(image::FD_MEMFD);
  file.set_id(9);
  file.mutable_memfd()->set_inode_id(3);
  image::MemfdInodeEntry inode;
  inode.set_name("/dev/zero");
  inode.set_uid(0);
  inode.set_gid(0);
  inode.set_size(kPage);
  inode.set_shmid(kObject);
  inode.set_seals(1);
  inode.set_inode_id(3);
  ImageFileBuilder memfd("memfd");
  ASSERT_THAT(memfd.Add(inode), IsOk());
  image.source.files["memfd.img"] = memfd.bytes();
  image.SharedPages(kObject, 0, PageOf("zero"));
  image.Finish();
  ASSERT_THAT(
      RestoreMemory(program.processes(), images, image.source, image.OpenFile(), image.progress),
      IsOk());
  EXPECT_EQ(program.Read(kBase, kPage), PageOf("zero"));
}

TEST(RestoreSharedMemoryTest, WithoutItsPagesNothingIsChanged) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  Share(image, kBase, 3, 0);
  const std::string before = program.Maps();
  EXPECT_THAT(image.Restore(), StatusIs(StatusCode::kDataLoss, HasSubstr("pagemap-shmem-77")));
  EXPECT_EQ(program.Maps(), before);
}

}  // namespace
}  // namespace stasis::engine
