#include "engine/memory/dump_memory.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "unit/engine/dump_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::testing::Each;

constexpr std::uint64_t kPages = 8;
constexpr std::uint64_t kSize = kPages * 4096;
constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL, Linux 6.13

// Eight private anonymous pages at an address that test and program know.
char* Map(int prot = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1) {
  return static_cast<char*>(::mmap(nullptr, kSize, prot, flags, fd, 0));
}

std::uint64_t Address(const char* memory) { return reinterpret_cast<std::uint64_t>(memory); }

std::string PagemapName(const Child& child) {
  return ImageName("pagemap", static_cast<std::uint64_t>(child.pid()));
}

const image::VmaEntry* AreaAt(const CheckpointImages& images, std::uint64_t address) {
  for (const image::VmaEntry& area : images.processes.front().mm.vmas()) {
    if (area.start() <= address && address < area.end() && area.status() != kAreaGuard) {
      return &area;
    }
  }
  return nullptr;
}

TEST(DumpMemoryTest, OnlyPagesThatWereWrittenAreStored) {
  SharedWords words;
  char* const memory = Map();
  Child child = Prepared(words, [&] {
    std::memset(memory + 2 * 4096, 'a', 4096);
    (void)*static_cast<volatile char*>(memory + 4 * 4096);  // the shared zero page
    std::memset(memory + 6 * 4096, 'b', 4096);
  });
  MemoryImages images;
  ImagesOf(child.pid(), images);
  const auto pages = PagesOf(images, PagemapName(child));
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const bool written = i == 2 || i == 6;
    ASSERT_EQ(pages.contains(Address(memory) + i * 4096), written) << i;
    if (!written) continue;
    EXPECT_THAT(pages.at(Address(memory) + i * 4096), Each(i == 2 ? 'a' : 'b'));
  }
  ::munmap(memory, kSize);
}

TEST(DumpMemoryTest, ContentThatTheProgramMayNotReadItselfIsStored) {
  SharedWords words;
  char* const memory = Map();
  Child child = Prepared(words, [&] {
    std::memset(memory, 'x', kSize);
    ::mprotect(memory + 4096, 2 * 4096, PROT_NONE);
  });
  MemoryImages images;
  ImagesOf(child.pid(), images);
  const auto pages = PagesOf(images, PagemapName(child));
  for (std::uint64_t i = 0; i < kPages; ++i) {
    EXPECT_THAT(pages.at(Address(memory) + i * 4096), Each('x')) << i;
  }
  ::munmap(memory, kSize);
}

TEST(DumpMemoryTest, OfAPrivateFileMappingOnlyCopiedPagesAreStored) {
  SharedWords words;
  char path[] = "/tmp/stasis-dump-XXXXXX";
  const int fd = ::mkstemp(path);
  ASSERT_EQ(::write(fd, std::string(kSize, 'f').data(), kSize), static_cast<ssize_t>(kSize));
  char* const memory = Map(PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  Child child = Prepared(words, [&] {
    for (std::uint64_t i = 0; i < kPages; ++i)
      (void)*static_cast<volatile char*>(memory + i * 4096);
    memory[3 * 4096] = 'p';
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const image::VmaEntry* const area = AreaAt(loaded, Address(memory));
  ASSERT_NE(area, nullptr);
  EXPECT_EQ(area->status(), std::uint32_t{kAreaRegular | kAreaFilePrivate});
  EXPECT_EQ(loaded.Path(static_cast<std::uint32_t>(area->shmid())), path);
  const auto pages = PagesOf(images, PagemapName(child));
  for (std::uint64_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(pages.contains(Address(memory) + i * 4096), i == 3) << i;
  }
  EXPECT_EQ(pages.at(Address(memory) + 3 * 4096)[0], 'p');
  ::munmap(memory, kSize);
  ::unlink(path);
  ::close(fd);
}

TEST(DumpMemoryTest, MoreRunsThanTheKernelReportsAtATimeComeOnceAndInOrder) {
  constexpr std::uint64_t kRuns = 1500;  // above 1024, and above 512 in the second call
  constexpr std::uint64_t kBytes = kRuns * 2 * 4096;
  SharedWords words;
  char* const memory = static_cast<char*>(
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ::madvise(memory, kBytes, MADV_NOHUGEPAGE);
  Child child = Prepared(words, [&] {
    for (std::uint64_t i = 0; i < kRuns; ++i) memory[i * 2 * 4096] = 'r';
  });
  MemoryImages images;
  ImagesOf(child.pid(), images);
  auto reader = ImageFileReader::Open(images, PagemapName(child), "pagemap");
  image::PagemapHead head;
  ASSERT_THAT(reader, IsOk());
  ASSERT_THAT(reader->Record(head), IsOk());
  std::uint64_t inside = 0, last_end = 0;
  while (!reader->AtEnd()) {
    image::PagemapEntry run;
    ASSERT_THAT(reader->Record(run), IsOk());
    ASSERT_GE(run.vaddr(), last_end);
    last_end = run.vaddr() + run.nr_pages() * 4096;
    if (run.vaddr() >= Address(memory) && run.vaddr() < Address(memory) + kBytes) ++inside;
  }
  EXPECT_EQ(inside, kRuns);
  ::munmap(memory, kBytes);
}

TEST(DumpMemoryTest, SharedMemoryOfTwoProcessesIsStoredOnce) {
  SharedWords words;
  words[5] = 0x1234;
  Child child = Prepared(words, [] {
    if (::fork() == 0) {
      testing::EndWithParent();
      testing::Sleep();
    }
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  ASSERT_EQ(loaded.processes.size(), 2u);
  const image::VmaEntry* const area = AreaAt(loaded, words.address());
  ASSERT_NE(area, nullptr);
  EXPECT_EQ(area->status(), std::uint32_t{kAreaRegular | kAreaAnonShared});
  EXPECT_EQ(area->flags(), std::uint32_t{MAP_SHARED | MAP_ANONYMOUS});
  const auto pages = PagesOf(images, ImageName("pagemap-shmem", area->shmid()));
  ASSERT_EQ(pages.size(), 1u);
  std::uint64_t word = 0;
  std::memcpy(&word, pages.at(0).data() + 5 * sizeof(word), sizeof(word));
  EXPECT_EQ(word, 0x1234u);
  EXPECT_EQ(
      std::ranges::count_if(
          images.order, [](const std::string& name) { return name.starts_with("pagemap-shmem"); }),
      1);
}

TEST(DumpMemoryTest, AdviceLocksAndGrowthAreInTheFlags) {
  SharedWords words;
  char* const memory = Map();
  Child child = Prepared(words, [&] {
    ::madvise(memory, kSize, MADV_DONTFORK);
    ::madvise(memory, kSize, MADV_NOHUGEPAGE);
    ::syscall(SYS_mlock, memory, kSize);  // mlock(3) does nothing under the address sanitizer
  });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const image::VmaEntry* const area = AreaAt(loaded, Address(memory));
  ASSERT_NE(area, nullptr);
  EXPECT_EQ(area->madv(), std::uint64_t{1} << MADV_DONTFORK | std::uint64_t{1} << MADV_NOHUGEPAGE);
  EXPECT_EQ(area->flags(), std::uint32_t{MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED});
  const image::VmaEntry* const stack = AreaAt(loaded, loaded.processes.front().mm.mm_start_stack());
  ASSERT_NE(stack, nullptr);
  EXPECT_EQ(stack->flags(), std::uint32_t{MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN});
  ::munmap(memory, kSize);
}

TEST(DumpMemoryTest, GuardPagesAreTheLastAreasAndHaveNoContent) {
  SharedWords words;
  char* const memory = Map();
  if (::madvise(memory, 4096, kGuardInstall) != 0) {
    GTEST_SKIP() << "this kernel has no guard pages (Linux 6.13)";
  }
  Child child = Prepared(words, [&] { std::memset(memory + 4096, 'g', 4096); });
  MemoryImages images;
  const CheckpointImages loaded = ImagesOf(child.pid(), images);
  const image::MmEntry& mm = loaded.processes.front().mm;
  const image::VmaEntry& last = mm.vmas(mm.vmas_size() - 1);
  EXPECT_EQ(last.status(), std::uint32_t{kAreaGuard});
  EXPECT_EQ(last.start(), Address(memory));
  EXPECT_EQ(last.end(), Address(memory) + 4096);
  const auto pages = PagesOf(images, PagemapName(child));
  EXPECT_FALSE(pages.contains(Address(memory)));
  EXPECT_TRUE(pages.contains(Address(memory) + 4096));
  ::munmap(memory, kSize);
}

TEST(DumpMemoryTest, OurOwnTracesAreNotInTheImages) {
  SharedWords words;
  // On one processor: the kernel notes in its rseq area, which is memory, where it runs. rseq(2)
  Child child = Prepared(words, [] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(::sched_getcpu(), &one);
    ::sched_setaffinity(0, sizeof(one), &one);
  });
  MemoryImages first_images, second_images;
  const CheckpointImages first = ImagesOf(child.pid(), first_images);
  const CheckpointImages second = ImagesOf(child.pid(), second_images);
  EXPECT_EQ(first.processes.front().mm.SerializeAsString(),
            second.processes.front().mm.SerializeAsString());
  EXPECT_EQ(PagesOf(first_images, PagemapName(child)), PagesOf(second_images, PagemapName(child)));
}

}  // namespace
}  // namespace stasis::engine
