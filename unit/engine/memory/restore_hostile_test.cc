// Images that no dumper makes: each is refused before the process is touched.
#include <functional>

#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;
using namespace testing;  // NOLINT: this folder's fixture

constexpr std::uint64_t kVvar = 0x7ffd'0000'0000;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

struct Hostile {
  const char* name;
  StatusCode code;
  const char* text;
  std::function<void(MemoryImage&, image::MmEntry&)> spoil;
};

std::vector<Hostile> Areas() {
  const auto add = [](std::uint64_t start, std::uint64_t end) {
    return [=](MemoryImage& image, image::MmEntry&) {
      image::VmaEntry& vma = image.Add(start, 1, kReadWrite);
      vma.set_end(end);
    };
  };
  constexpr auto kInvalid = StatusCode::kInvalidArgument;
  constexpr auto kMissing = StatusCode::kUnimplemented;
  const auto status = [](std::uint32_t bit) {
    return [=](MemoryImage& image, image::MmEntry&) { image.Add(kBase, 1, 3, 0x201 | bit); };
  };
  return {
      {"Unaligned", kInvalid, "no program", add(kBase + 8, kBase + kPage + 8)},
      {"Backwards", kInvalid, "no program", add(kBase, kBase - kPage)},
      {"Empty", kInvalid, "no program", add(kBase, kBase)},
      {"KernelHalf", kInvalid, "no program", add(0xffff'8000'0000'0000, 0xffff'8000'0000'1000)},
      {"AcrossTheEnd", kInvalid, "no program", add(kBase, ~0ull << 12)},
      {"OverTheNext", kInvalid, "overlaps", add(kVvar - kPage, kVvar + kPage)},
      {"OverOurs", StatusCode::kInternal, "where the restore works",
       add(kOurArea, kOurArea + kPage)},
      {"Protection", kInvalid, "protection",
       [](MemoryImage& image, image::MmEntry&) { image.Add(kBase, 1, 0x0100'0003); }},
      {"TwoKinds", kInvalid, "status", status(0x40)},
      {"AnonymousFile", kInvalid, "contradict",
       [](MemoryImage& image, image::MmEntry&) {
         image.Add(kBase, 1, 3, MemoryImage::kPrivateFile, MAP_ANONYMOUS);
       }},
      {"HugePages", kMissing, "huge pages",
       [](MemoryImage& image, image::MmEntry&) {
         image.Add(kBase, 1, 3, MemoryImage::kPrivateFile, MAP_HUGETLB);
       }},
      {"UnknownFlag", kMissing, "unknown mmap flags",
       [](MemoryImage& image, image::MmEntry&) {
         image.Add(kBase, 1, 3, MemoryImage::kAnonymous, MAP_32BIT);
       }},
      {"DestructiveAdvice", kMissing, "advice",
       [](MemoryImage& image, image::MmEntry&) {
         image.Add(kBase, 1, 3).set_madv(1 << MADV_REMOVE);
       }},
      {"AnonymousSocket", kInvalid, "contradicting status", status(0x800)},
      {"ShadowStack", kMissing, "shadow stack", status(0x8000)},
      {"GuardOutside", kInvalid, "lie within no area",
       [](MemoryImage& image, image::MmEntry&) {
         image.Add(kBase, 1, 3);
         image.Add(kBase, 2, 0, MemoryImage::kGuard);
       }},
      {"SharedAtNoOffset", kInvalid, "impossible offset",
       [](MemoryImage& image, image::MmEntry&) {
         image.Add(kBase, 1, 3, MemoryImage::kSharedAnonymous).set_pgoff(1ull << 62);
       }},
      {"HugeVvar", StatusCode::kFailedPrecondition, "vDSO",
       [](MemoryImage& image, image::MmEntry&) {
         image.Add(kVvar - (1ull << 42), (1ull << 42) / kPage, 1, MemoryImage::kVvar);
       }},
      {"VvarApart", kInvalid, "lies apart",
       [](MemoryImage& image, image::MmEntry&) { image.Add(kBase, 1, 1, MemoryImage::kVvar); }},
      {"TwoVdsos", kInvalid, "second vDSO",
       [](MemoryImage& image, image::MmEntry&) { image.Add(kBase, 1, 5, MemoryImage::kVdso); }},
      {"CodeBackwards", kInvalid, "its code",
       [](MemoryImage&, image::MmEntry& mm) { mm.set_mm_end_code(mm.mm_start_code()); }},
      {"HeapInTheKernel", kInvalid, "its heap",
       [](MemoryImage&, image::MmEntry& mm) { mm.set_mm_brk(~0ull); }},
      {"HalfAnAuxv", kInvalid, "auxiliary vector",
       [](MemoryImage&, image::MmEntry& mm) { mm.add_mm_saved_auxv(6); }},
  };
}

class HostileMemoryTest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileMemoryTest, IsRefusedBeforeAnythingIsChanged) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  GetParam().spoil(image, program.image().mm);
  const std::string before = program.Maps();
  EXPECT_THAT(image.Restore(), StatusIs(GetParam().code, HasSubstr(GetParam().text)));
  EXPECT_EQ(program.Maps(), before);
}

INSTANTIATE_TEST_SUITE_P(All, HostileMemoryTest, ::testing::ValuesIn(Areas()),
                         [](const auto& test) { return std::string(test.param.name); });

// What a pagemap says, against a program that has pages kBase to kBase + 4.
struct Run {
  std::uint64_t start, pages;
  std::uint32_t flags;
};

Status RestoreRuns(const std::vector<Run>& runs, std::int64_t missing_bytes = 0) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.Add(kBase, 4, kReadWrite);
  image.Add(kBase + 8 * kPage, 1, kReadWrite, MemoryImage::kPrivateFile).set_shmid(5);
  image.Finish();
  const std::string name = ImageName("pagemap", static_cast<std::uint64_t>(program.pid()));
  ImageFileBuilder pagemap("pagemap");
  image::PagemapHead head;
  head.set_pages_id(1);
  EXPECT_THAT(pagemap.Add(head), IsOk());
  std::uint64_t pages = 0;
  for (const Run& run : runs) {
    image::PagemapEntry entry;
    entry.set_vaddr(run.start);
    entry.set_compat_nr_pages(0);
    entry.set_nr_pages(run.pages);
    entry.set_flags(run.flags);
    EXPECT_THAT(pagemap.Add(entry), IsOk());
    pages += run.pages % 1000;
  }
  image.source.files[name] = pagemap.bytes();
  image.source.files["pages-1.img"] =
      std::string(pages * kPage - static_cast<std::uint64_t>(missing_bytes), 'x');
  const std::string before = program.Maps();
  const Status status =
      RestoreMemory(program.processes(), {}, image.source, image.OpenFile(), image.progress);
  EXPECT_EQ(program.Maps(), before);
  return status;
}

TEST(HostilePagesTest, AreRefusedBeforeAnythingIsChanged) {
  constexpr std::uint32_t kParent = 1, kLazy = 2, kPresent = 4;
  EXPECT_THAT(RestoreRuns({{kBase + 3 * kPage, 2, kPresent}}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("belong to no area")));
  EXPECT_THAT(RestoreRuns({{kVvar, 1, kPresent}}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("belong to no area")));
  EXPECT_THAT(RestoreRuns({{kBase + kPage, 1, kPresent}, {kBase, 1, kPresent}}),
              StatusIs(StatusCode::kDataLoss, HasSubstr("out of order")));
  EXPECT_THAT(RestoreRuns({{kBase, 2, kPresent}, {kBase + kPage, 1, kPresent}}),
              StatusIs(StatusCode::kDataLoss, HasSubstr("twice")));
  EXPECT_THAT(RestoreRuns({{kBase, ~0ull, kPresent}}),
              StatusIs(StatusCode::kDataLoss, HasSubstr("impossible")));
  EXPECT_THAT(RestoreRuns({{kBase + 1, 1, kPresent}}),
              StatusIs(StatusCode::kDataLoss, HasSubstr("impossible")));
  EXPECT_THAT(RestoreRuns({{kBase, 1, kParent}}),
              StatusIs(StatusCode::kDataLoss, HasSubstr("parent/pagemap-")));
  EXPECT_THAT(RestoreRuns({{kBase, 1, kLazy}}),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("lazy")));
  EXPECT_THAT(RestoreRuns({{kBase, 4, kPresent | kLazy}}, kPage),
              StatusIs(StatusCode::kDataLoss, HasSubstr("incomplete")));
  EXPECT_THAT(RestoreRuns({{kBase, 1, kPresent}}),
              StatusIs(StatusCode::kDataLoss, HasSubstr("lacks pages of its vDSO")));
}

TEST(HostilePagesTest, AMissingPagemapIsRefused) {
  FreshProgram program;
  MemoryImage image(program, kVvar);
  image.Finish();
  image.source.files.clear();
  EXPECT_THAT(
      RestoreMemory(program.processes(), {}, image.source, image.OpenFile(), image.progress),
      StatusIs(StatusCode::kDataLoss, HasSubstr("is missing")));
}

TEST(ChooseAreaAddressTest, KeepsAwayFromEveryProgram) {
  CheckpointImages images;
  image::VmaEntry& vma = *images.processes.emplace_back().mm.add_vmas();
  vma.set_start(kPage);
  vma.set_end(kBase);
  const Result<std::uint64_t> address = ChooseAreaAddress(images);
  ASSERT_THAT(address, IsOk());
  EXPECT_GT(*address, kBase + kPage);
  image::VmaEntry& other = *images.processes.emplace_back().mm.add_vmas();
  other.set_start(*address);
  other.set_end(*address + kPage);
  EXPECT_GT(*ChooseAreaAddress(images), *address + kPage);
  other.set_end(~0ull);
  EXPECT_THAT(ChooseAreaAddress(images), StatusIs(StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace stasis::engine
