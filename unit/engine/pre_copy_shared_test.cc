#include "engine/pre_copy_shared.h"

#include <sys/shm.h>

#include <algorithm>

#include "engine/memory/restore_pages.h"
#include "unit/engine/dump_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::uint64_t kPages = 6000;  // 23 MiB
constexpr std::uint64_t kWords = 4096 / sizeof(std::uint64_t);
constexpr std::uint64_t kBytes = kPages * 4096;

// What a program and its test tell each other, by words.
enum Word { kReady = 0, kGo = 1, kDone = 2 };

// Pages that several processes share, by their first words.
class Pages {
 public:
  explicit Pages(void* at) : words_(static_cast<volatile std::uint64_t*>(at)) {}
  static Pages Map() {
    return Pages(
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  }

  volatile std::uint64_t& operator[](std::uint64_t page) const { return words_[page * kWords]; }
  char* At(std::uint64_t page) const {
    return reinterpret_cast<char*>(const_cast<std::uint64_t*>(words_ + page * kWords));
  }
  void Fill(std::uint64_t value) const {
    for (std::uint64_t page = 0; page < kPages; ++page) (*this)[page] = value;
  }

 private:
  volatile std::uint64_t* words_;
};

// A program that fills pages, and does `then` with them once the first round is over.
template <typename Then>
Child Changing(const SharedWords& words, Then then) {
  Child child = Program([&] {
    const Pages pages = Pages::Map();
    pages.Fill(1);
    words[kReady] = 1;
    while (words[kGo] == 0) ::usleep(100);
    then(pages);
    words[kDone] = 1;
    return testing::Sleep();
  });
  EXPECT_TRUE(words.WaitAbove(kReady, 0));
  return child;
}

// The dump of `child`, which does its part between the first copy and the last.
struct Dumped {
  MemoryImages images;
  DumpReport report;
  std::string log;

  Dumped(const Child& child, const SharedWords& words) {
    DumpRequest request;
    request.root = child.pid();
    request.log = Log([this](LogLevel, const std::string& text) { log += text + "\n"; });
    images.on_open = [&](std::string_view name) {
      if (name != "inventory.img" || words[kGo] != 0) return OkStatus();
      words[kGo] = 1;  // the end of the first round
      return words.WaitAbove(kDone, 0) ? OkStatus() : DeadlineExceeded("the program");
    };
    const auto result = Dump(request, images);
    EXPECT_THAT(result, IsOk());
    if (result.ok()) report = *result;
  }

  // The first word of each page of the one large object, as a restore would have it.
  std::vector<std::uint64_t> FirstWords() const {
    std::vector<std::uint64_t> words(kPages, 0);
    for (const auto& [name, bytes] : images.files) {
      if (!name.starts_with("pagemap-shmem-")) continue;
      const auto set = ReadPageSet(images, name);
      EXPECT_THAT(set, IsOk());
      if (!set.ok() || set->runs.empty() || set->runs.back().end != kBytes) continue;
      for (std::uint64_t page = 0; page < kPages; ++page) {
        const auto read = ReadPages(images, *set, {page * 4096, (page + 1) * 4096});
        if (read.ok() && !read->empty()) std::memcpy(&words[page], read->data(), sizeof(words[0]));
      }
    }
    return words;
  }
};

// Shared memory is saved while it runs where all processes of the machine can be seen.
bool SeesAll() {
  return ReadLinkAt(AT_FDCWD, "/proc/self/ns/pid").value_or("") == "pid:[4026531836]";
}
#define SKIP_UNLESS_ALL_ARE_SEEN() \
  if (!SeesAll()) GTEST_SKIP() << "this test runs in a pid namespace of its own"

TEST(PreCopySharedTest, WhatTwoProcessesWriteMeanwhileIsSaved) {
  SKIP_UNLESS_ALL_ARE_SEEN();
  SharedWords words;
  Child child = Program([&] {
    const Pages pages = Pages::Map();
    pages.Fill(1);
    if (::fork() == 0) {
      testing::EndWithParent();
      words[kReady] = 1;
      while (words[kGo] == 0) ::usleep(100);
      pages[7] = 2;  // through page tables of its own, where nothing is yet
      words[kDone] = 1;
      return testing::Sleep();
    }
    while (words[kGo] == 0) ::usleep(100);
    pages[8] = 3;
    while (words[kDone] == 0) ::usleep(100);
    return testing::Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(kReady, 0));
  const Dumped dumped(child, words);
  std::vector<std::uint64_t> expected(kPages, 1), saved = dumped.FirstWords();
  expected[7] = 2;
  saved[8] = 1;  // perhaps it was written later
  EXPECT_EQ(saved, expected);
  EXPECT_GT(dumped.report.pages_in_parent, kPages / 2) << dumped.log;
}

TEST(PreCopySharedTest, WhatIsTakenFromTheObjectDoesNotComeBack) {
  SKIP_UNLESS_ALL_ARE_SEEN();
  SharedWords words;
  Child child = Changing(words, [](const Pages& pages) {
    pages[10] = 2;
    ::madvise(pages.At(10), 4096, MADV_DONTNEED);  // from the page tables alone
    ::madvise(pages.At(20), 2 * 4096, MADV_REMOVE);
    [[maybe_unused]] const std::uint64_t zero = pages[20];  // brings it back, and writes nothing
  });
  const Dumped dumped(child, words);
  std::vector<std::uint64_t> expected(kPages, 1);
  expected[10] = 2;
  expected[20] = expected[21] = 0;
  EXPECT_EQ(dumped.FirstWords(), expected);
  EXPECT_GT(dumped.report.pages_in_parent, kPages / 2) << dumped.log;
}

TEST(PreCopySharedTest, AfterAForkAllIsSavedAgain) {
  SKIP_UNLESS_ALL_ARE_SEEN();
  SharedWords words;
  Child child = Changing(words, [](const Pages& pages) {
    const pid_t born = ::fork();
    if (born == 0) {
      pages[30] = 2;
      ::_exit(0);
    }
    ::waitpid(born, nullptr, 0);
  });
  const Dumped dumped(child, words);
  std::vector<std::uint64_t> expected(kPages, 1);
  expected[30] = 2;
  EXPECT_EQ(dumped.FirstWords(), expected);
  EXPECT_THAT(dumped.log, HasSubstr("has forked"));
}

TEST(PreCopySharedTest, AfterASecondMappingAllIsSavedAgain) {
  SKIP_UNLESS_ALL_ARE_SEEN();
  SharedWords words;
  Child child = Changing(words, [](const Pages& pages) {
    void* const second = ::mremap(pages.At(0), 0, kBytes, MREMAP_MAYMOVE);
    const Pages doubled(second);
    doubled[40] = 2;
    ::munmap(second, kBytes);
  });
  const Dumped dumped(child, words);
  std::vector<std::uint64_t> expected(kPages, 1);
  expected[40] = 2;
  EXPECT_EQ(dumped.FirstWords(), expected);
  EXPECT_THAT(dumped.log, HasSubstr("has moved shared memory"));
}

TEST(PreCopySharedTest, WhatAProcessOutsideMapsIsSavedWhileTheTreeStandsStill) {
  SharedWords words;
  const Pages pages = Pages::Map();
  Child child = Program([&] {
    pages.Fill(1);
    words[kReady] = 1;
    return testing::Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(kReady, 0));
  words[kDone] = 1;
  const Dumped dumped(child, words);
  EXPECT_EQ(dumped.FirstWords(), std::vector<std::uint64_t>(kPages, 1));
  EXPECT_THAT(dumped.images.Names(), Not(Contains(HasSubstr("parent/pagemap-shmem"))));
  ::munmap(pages.At(0), kBytes);
}

TEST(PreCopySharedTest, AMemoryFileIsSavedWhileTheTreeStandsStill) {
  SharedWords words;
  Child child = Program([&] {
    const int fd = ::memfd_create("shared", MFD_CLOEXEC);
    if (::ftruncate(fd, kBytes) != 0) return 1;
    Pages(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)).Fill(1);
    words[kReady] = 1;
    return testing::Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(kReady, 0));
  words[kDone] = 1;
  const Dumped dumped(child, words);
  EXPECT_EQ(dumped.FirstWords(), std::vector<std::uint64_t>(kPages, 1));
  EXPECT_THAT(dumped.images.Names(), Not(Contains(HasSubstr("parent/pagemap-shmem"))));
}

TEST(PreCopySharedTest, LeavesNoTraceInTheProgram) {
  SKIP_UNLESS_ALL_ARE_SEEN();
  SharedWords words;
  Child child = Changing(words, [](const Pages&) {});
  const std::string maps = ProcText(child.pid(), "maps");
  const Dumped dumped(child, words);
  EXPECT_GT(dumped.report.pages_in_parent, kPages / 2) << dumped.log;
  EXPECT_EQ(ProcText(child.pid(), "maps"), maps);
  EXPECT_THAT(ProcText(child.pid(), "smaps"), Not(HasSubstr(" uw ")));
  // A second dump begins like the first.
  const Dumped again(child, words);
  EXPECT_EQ(again.FirstWords(), std::vector<std::uint64_t>(kPages, 1));
}

}  // namespace
}  // namespace stasis::engine
