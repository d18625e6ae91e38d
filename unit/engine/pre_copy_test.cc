#include "engine/pre_copy.h"

#include <algorithm>
#include <array>
#include <thread>
#include <vector>

#include "engine/memory/restore_pages.h"
#include "unit/engine/dump_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::stasis::testing::StatusIs;
using ::stasis::testing::WaitForState;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using ::testing::Contains;
using ::testing::Not;
using ::testing::StartsWith;

constexpr std::uint64_t kPages = 6000;  // 23 MiB
constexpr std::uint64_t kWords = 4096 / sizeof(std::uint64_t);

using Word = volatile std::uint64_t;

Word* MapPages() {
  return static_cast<Word*>(
      ::mmap(nullptr, kPages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}
void Unmap(Word* memory) { ::munmap(const_cast<std::uint64_t*>(memory), kPages * 4096); }

void Fill(Word* memory) {
  for (std::uint64_t page = 0; page < kPages; ++page) memory[page * kWords] = 1;
}

Result<DumpReport> DumpInRounds(pid_t pid, MemoryImages& images) {
  DumpRequest request;
  request.root = pid;
  return Dump(request, images);
}

// The first word of each page at `memory`, as a restore would have it.
std::vector<std::uint64_t> FirstWords(const MemoryImages& images, pid_t pid, const Word* memory) {
  const auto name = ImageName("pagemap", static_cast<std::uint64_t>(pid));
  const auto set = ReadPageSet(images, name);
  EXPECT_THAT(set, IsOk());
  std::vector<std::uint64_t> words(kPages, 0);
  for (std::uint64_t page = 0; set.ok() && page < kPages; ++page) {
    const auto address = reinterpret_cast<std::uint64_t>(memory + page * kWords);
    const auto bytes = ReadPages(images, *set, {address, address + 4096});
    if (bytes.ok() && !bytes->empty())
      std::memcpy(&words[page], bytes->data(), sizeof(words[page]));
  }
  return words;
}

// Page n % kPages gets n, for rising n: what any moment leaves behind is known.
TEST(PreCopyTest, MemoryThatIsWrittenMeanwhileIsThatOfOneMoment) {
  SharedWords words;
  Word* const memory = MapPages();
  Child child = Program([&] {
    for (std::uint64_t n = kPages;; ++n) {
      memory[n % kPages * kWords] = n;
      words[0] = n;
      if (n % 16 == 0) ::usleep(50);
    }
    return 0;
  });
  ASSERT_TRUE(words.WaitAbove(0, 2 * kPages));
  MemoryImages images;
  const auto report = DumpInRounds(child.pid(), images);
  ASSERT_THAT(report, IsOk());
  EXPECT_GT(report->pages().in_parent, 0);
  EXPECT_GE(report->stops.count, 3u);
  const auto saved = FirstWords(images, child.pid(), memory);
  const std::uint64_t last = *std::ranges::max_element(saved);
  for (std::uint64_t n = last - kPages + 1; n <= last; ++n) ASSERT_EQ(saved[n % kPages], n);
  Unmap(memory);
}

TEST(PreCopyTest, WhatIsGivenBackMeanwhileDoesNotComeBack) {
  SharedWords words;
  Word* const memory = MapPages();
  Child child = Program([&] {
    Fill(memory);
    words[0] = 1;
    while (words[1] == 0) ::usleep(100);
    // As a whole, so that page tables go with it, and in part.
    const auto at = [&](std::uint64_t page) {
      return const_cast<std::uint64_t*>(memory + page * kWords);
    };
    ::madvise(at(0), 2000 * 4096, MADV_DONTNEED);
    ::madvise(at(3000), 4096, MADV_DONTNEED);
    ::munmap(at(4000), 4096);
    words[2] = 1;
    return testing::Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  MemoryImages images;
  images.on_open = [&](std::string_view name) {
    if (name != "inventory.img" || words[1] != 0) return OkStatus();
    words[1] = 1;  // the end of the first round
    return words.WaitAbove(2, 0) ? OkStatus() : DeadlineExceeded("the program");
  };
  ASSERT_THAT(DumpInRounds(child.pid(), images), IsOk());
  const auto saved = FirstWords(images, child.pid(), memory);
  for (std::uint64_t page = 0; page < kPages; ++page) {
    const bool is_gone = page < 2000 || page == 3000 || page == 4000;
    ASSERT_EQ(saved[page], is_gone ? 0u : 1u) << page;
  }
  Unmap(memory);
}

// Fills a page so that no register and no stack has a part of it.
void FillUniquely(Word* page, pid_t seed) {
  auto state = static_cast<std::uint64_t>(seed);
  for (std::uint64_t i = 0; i < kWords; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    page[i] = state;
  }
}

TEST(PreCopyTest, DroppableMemoryIsNeverSaved) {
  constexpr int kMapDroppable = 0x08;  // Linux 6.11
  void* const probe = ::mmap(nullptr, 4096, PROT_READ, kMapDroppable | MAP_ANONYMOUS, -1, 0);
  if (probe == MAP_FAILED) GTEST_SKIP() << "this kernel has no MAP_DROPPABLE";
  ::munmap(probe, 4096);
  SharedWords words;
  Word* const memory = MapPages();
  Child child = Prepared(words, [&] {
    Fill(memory);
    void* const secret =
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, kMapDroppable | MAP_ANONYMOUS, -1, 0);
    FillUniquely(static_cast<Word*>(secret), ::getpid());
  });
  MemoryImages images;
  const auto report = DumpInRounds(child.pid(), images);
  ASSERT_THAT(report, IsOk());
  EXPECT_GT(report->pages().in_parent, 0);
  std::array<std::uint64_t, kWords> page;
  FillUniquely(page.data(), child.pid());
  const std::string part(reinterpret_cast<const char*>(&page[128]), 64);
  for (const auto& [name, bytes] : images.files) {
    EXPECT_EQ(bytes.find(part), std::string::npos) << name;
  }
  Unmap(memory);
}

TEST(PreCopyTest, LeavesNoTraceInTheProgram) {
  SharedWords words;
  Word* const memory = MapPages();
  Child child = Prepared(words, [&] { Fill(memory); });
  const std::string maps = ProcText(child.pid(), "maps");
  MemoryImages images;
  ASSERT_THAT(DumpInRounds(child.pid(), images), IsOk());
  EXPECT_THAT(images.Names(), Contains(StartsWith("parent/pages-")));
  EXPECT_EQ(ProcText(child.pid(), "maps"), maps);
  EXPECT_THAT(ProcText(child.pid(), "smaps"), Not(::testing::HasSubstr(" uw ")));
  // A second dump begins like the first.
  MemoryImages again;
  ASSERT_THAT(DumpInRounds(child.pid(), again), IsOk());
  EXPECT_EQ(FirstWords(again, child.pid(), memory), std::vector<std::uint64_t>(kPages, 1));
  Unmap(memory);
}

TEST(PreCopyTest, IsNotForLittleMemoryOrWhenItIsNotWanted) {
  SharedWords words;
  Word* const memory = MapPages();
  Child child = Prepared(words, [&] { Fill(memory); });
  MemoryImages images;
  const auto report = DumpTo(child.pid(), images);
  ASSERT_THAT(report, IsOk());
  EXPECT_EQ(report->stops.count, 1u);
  EXPECT_THAT(images.Names(), Not(Contains(StartsWith("parent/"))));
  Unmap(memory);
}

// Of many tasks smaps is read before they stand still.
TEST(PreCopyTest, AnAdviceThatChangesAfterItWasReadIsSeen) {
  SharedWords words;
  Word* const memory = MapPages();
  Child child = Program([&] {
    std::vector<std::thread> threads;
    for (int i = 0; i < 40; ++i) threads.emplace_back([] { ::pause(); });
    words[0] = 1;
    while (words[1] == 0) ::usleep(1000);
    ::madvise(const_cast<std::uint64_t*>(memory), kPages * 4096, MADV_DONTFORK);
    words[2] = 1;
    return stasis::testing::Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  MemoryImages images;
  DumpReport report;
  DumpRequest request;
  request.root = child.pid();
  auto copy = PreCopy::Run(request, images, report);
  ASSERT_THAT(copy, IsOk());
  {
    const auto tree = FrozenTree::Freeze(
        child.pid(), std::chrono::steady_clock::now() + std::chrono::seconds(30), {});
    ASSERT_THAT(tree, IsOk());
    const auto areas = copy->ReadVmas(tree->root(), Fate::kLeaveRunning);
    ASSERT_THAT(areas, IsOk());
    EXPECT_TRUE(std::ranges::any_of(*areas, [](const Vma& vma) { return vma.Has("mr"); }));
  }
  EXPECT_THAT(copy->CheckAdvices(), IsOk());
  words[1] = 1;
  ASSERT_TRUE(words.WaitAbove(2, 0));
  EXPECT_THAT(copy->CheckAdvices(), StatusIs(StatusCode::kUnavailable));
  Unmap(memory);
}

// mremap(2) takes one area: a program that resizes its memory all the time would meet one that a watch has split.
TEST(PreCopyTest, AreasThatAreResizedMeanwhileStayWhole) {
  constexpr std::size_t kBytes = kPages * 4096;
  SharedWords words;
  Child child = Program([&] {
    std::array<void*, 2> areas = {};
    for (std::size_t i = 0; i < areas.size(); ++i) {
      const int flags = MAP_ANONYMOUS | (i == 0 ? MAP_PRIVATE : MAP_SHARED);
      areas[i] = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
      Fill(static_cast<Word*>(areas[i]));
    }
    for (std::size_t size = kBytes; words[1] == 0; ++words[0]) {
      const std::size_t next = kBytes - words[0] % 512 * 4096;
      for (void*& area : areas) {
        area = ::mremap(area, size, next, MREMAP_MAYMOVE);
        if (area == MAP_FAILED) return 2;
      }
      size = next;
    }
    return 0;
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  for (int i = 0; i < 10; ++i) {
    MemoryImages images;
    ASSERT_THAT(DumpInRounds(child.pid(), images), IsOk());
  }
  words[1] = 1;
  EXPECT_EQ(child.Wait(), 0);
}

TEST(PreCopyTest, ItsStopsCountInWhatIsLeftOfAWait) {
  SharedWords words;
  Word* const memory = MapPages();
  Child child = Program([&] {
    Fill(memory);
    words[0] = 1;
    const timespec time = {100, 0};
    ::nanosleep(&time, nullptr);
    return 1;
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  WaitForState(child.pid(), 'S');
  // Where the program had to wait for something else between two stops, nobody knows how long it slept before.
  bool counts = false;
  for (int attempt = 0; attempt < 8 && !counts; ++attempt) {
    ::usleep(300'000);
    MemoryImages images;
    ASSERT_THAT(DumpInRounds(child.pid(), images), IsOk());
    const auto loaded = LoadCheckpoint(images);
    ASSERT_THAT(loaded, IsOk());
    const auto& core = loaded->processes.front().leader().core.thread_core();
    counts = nanoseconds(core.stasis_wait_left_nsec()) <=
             nanoseconds(std::chrono::seconds(100)) - milliseconds(250);
  }
  EXPECT_TRUE(counts);
  Unmap(memory);
}

}  // namespace
}  // namespace stasis::engine
