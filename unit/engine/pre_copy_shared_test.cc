#include "engine/pre_copy_shared.h"

#include <sys/shm.h>
#include <time.h>

#include <functional>

#include "engine/memory/restore_pages.h"
#include "unit/engine/dump_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::uint64_t kPages = 6144;  // 24 MiB, twelve huge pages
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

// A program that fills the pages of `map`, and does `then` with them once the first round is over.
template <typename Then>
Child Changing(
    const SharedWords& words, Then then,
    const std::function<Pages()>& map = [] { return Pages::Map(); }) {
  Child child = Program([&] {
    const Pages pages = map();
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
    EXPECT_THAT(Dump(request, images), IsOk());
  }

  // The first word of each page of the one large object, as a restore would have it.
  std::vector<std::uint64_t> FirstWords() const {
    const PageSet set = OfObject();
    std::vector<std::uint64_t> words(kPages, 0);
    for (std::uint64_t page = 0; page < kPages; ++page) {
      const auto read = ReadPages(images, set, {page * 4096, (page + 1) * 4096});
      if (read.ok() && !read->empty()) std::memcpy(&words[page], read->data(), sizeof(words[0]));
    }
    return words;
  }

  // Whether most of it was saved while the program ran.
  bool IsFromParent() const {
    std::uint64_t bytes = 0;
    for (const PageSet::Extent& extent : OfObject().extents) {
      if (extent.file != 0) bytes += extent.range.size();
    }
    return bytes > kBytes / 2;
  }

 private:
  PageSet OfObject() const {
    for (const auto& [name, bytes] : images.files) {
      if (!name.starts_with("pagemap-shmem-")) continue;
      auto set = ReadPageSet(images, name);
      EXPECT_THAT(set, IsOk());
      if (set.ok() && !set->runs.empty() && set->runs.back().end == kBytes) return *std::move(set);
    }
    ADD_FAILURE() << "the object is not in the images";
    return {};
  }
};

TEST(PreCopySharedTest, WhatTwoProcessesWriteMeanwhileIsSaved) {
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
  EXPECT_TRUE(dumped.IsFromParent()) << dumped.log;
}

TEST(PreCopySharedTest, WhatIsTakenFromTheObjectDoesNotComeBack) {
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
  EXPECT_TRUE(dumped.IsFromParent()) << dumped.log;
}

// All pages begin with 1, `page` with 2, and none is left to the parent; the log says `why`.
void ExpectSavedAgain(const Dumped& dumped, std::size_t page, const char* why) {
  std::vector<std::uint64_t> expected(kPages, 1);
  expected[page] = 2;
  EXPECT_EQ(dumped.FirstWords(), expected);
  EXPECT_FALSE(dumped.IsFromParent());
  EXPECT_THAT(dumped.log, HasSubstr(why));
}

TEST(PreCopySharedTest, AfterAForkAllIsSavedAgain) {
  SharedWords words;
  Child child = Changing(words, [](const Pages& pages) {
    const pid_t born = ::fork();
    if (born == 0) {
      pages[30] = 2;
      ::_exit(0);
    }
    ::waitpid(born, nullptr, 0);
  });
  ExpectSavedAgain(Dumped(child, words), 30, "has forked");
}

TEST(PreCopySharedTest, AfterASecondMappingAllIsSavedAgain) {
  SharedWords words;
  Child child = Changing(words, [](const Pages& pages) {
    void* const second = ::mremap(pages.At(0), 0, kBytes, MREMAP_MAYMOVE);
    const Pages doubled(second);
    doubled[40] = 2;
    ::munmap(second, kBytes);
  });
  ExpectSavedAgain(Dumped(child, words), 40, "has moved shared memory");
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
  EXPECT_FALSE(dumped.IsFromParent());
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
  EXPECT_FALSE(dumped.IsFromParent());
}

// A new segment, attached for a second: what comes and goes within one is not seen.
class Segment {
 public:
  Segment() : id_(::shmget(IPC_PRIVATE, kBytes, IPC_CREAT | 0600)) {}
  ~Segment() { ::shmctl(id_, IPC_RMID, nullptr); }
  Pages Attach() const { return Pages(::shmat(id_, nullptr, 0)); }
  void AwaitNextSecond() const {
    shmid_ds segment = {};
    while (::shmctl(id_, IPC_STAT, &segment) == 0 && ::time(nullptr) <= segment.shm_atime) {
      ::usleep(10'000);
    }
  }

 private:
  int id_;
};

TEST(PreCopySharedTest, ASegmentIsSavedUnlessSomebodyAttachesToIt) {
  for (const bool attaches : {false, true}) {
    SharedWords words;
    const Segment segment;
    const auto change = [&](const Pages& pages) {
      pages[50] = 2;
      if (!attaches) return;
      const Pages again = segment.Attach();
      again[51] = 3;
      ::shmdt(again.At(0));
    };
    Child child = Changing(words, change, [&] { return segment.Attach(); });
    segment.AwaitNextSecond();
    const Dumped dumped(child, words);
    std::vector<std::uint64_t> expected(kPages, 1);
    expected[50] = 2;
    if (attaches) expected[51] = 3;
    EXPECT_EQ(dumped.FirstWords(), expected);
    EXPECT_EQ(dumped.log.find("somebody attached to it") != std::string::npos, attaches);
    EXPECT_EQ(dumped.IsFromParent(), !attaches) << dumped.log;
  }
}

TEST(PreCopySharedTest, HugePagesAreSavedToo) {
  constexpr std::uint64_t kNone = 2;
  SharedWords words;
  const auto change = [](const Pages& pages) {
    pages[512] = 2;
    ::madvise(pages.At(512), 512 * 4096, MADV_DONTNEED);
  };
  const auto map = [&words] {
    void* const at = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | 21 << 26, -1, 0);
    if (at != MAP_FAILED) return Pages(at);
    words[kReady] = kNone;
    ::_exit(0);
  };
  Child child = Changing(words, change, map);
  if (words[kReady] == kNone) GTEST_SKIP() << "fewer than twelve huge pages are free";
  const Dumped dumped(child, words);
  std::vector<std::uint64_t> expected(kPages, 1);
  expected[512] = 2;
  EXPECT_EQ(dumped.FirstWords(), expected);
  EXPECT_TRUE(dumped.IsFromParent()) << dumped.log;
}

TEST(PreCopySharedTest, LeavesNoTraceInTheProgram) {
  SharedWords words;
  Child child = Changing(words, [](const Pages&) {});
  const std::string maps = ProcText(child.pid(), "maps");
  const Dumped dumped(child, words);
  EXPECT_TRUE(dumped.IsFromParent()) << dumped.log;
  EXPECT_EQ(ProcText(child.pid(), "maps"), maps);
  EXPECT_THAT(ProcText(child.pid(), "smaps"), Not(HasSubstr(" uw ")));
  // A second dump begins like the first.
  const Dumped again(child, words);
  EXPECT_EQ(again.FirstWords(), std::vector<std::uint64_t>(kPages, 1));
}

}  // namespace
}  // namespace stasis::engine
