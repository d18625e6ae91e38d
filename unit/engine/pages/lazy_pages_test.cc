// The page server, its guardian, and a process whose memory they have.
#include "engine/memory/lazy_pages.h"

#include <sys/uio.h>

#include <filesystem>
#include <set>
#include <thread>

#include "engine/proc/task.h"
#include "unit/engine/files/scratch_directory.h"
#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using testing::FreshProgram;
using testing::kBase;
using testing::kPage;
using testing::PageOf;

constexpr std::uint64_t kPages = 512;

// Pages with their own number, in a file that others can read.
class NumberedPages : public testing::MapSource {
 public:
  explicit NumberedPages(std::uint64_t count) {
    std::string& bytes = files["pages-1.img"];
    for (std::uint64_t i = 0; i < count; ++i) bytes += PageOf(std::to_string(i));
  }
  Result<ImagePlace> Locate(std::string_view name) const override {
    ImagePlace place = {.fd = UniqueFd(::memfd_create("pages", MFD_CLOEXEC)), .offset = 3};
    RETURN_IF_ERROR(WriteAll(place.fd.get(), "abc" + files.find(name)->second));
    return place;
  }
};

class LazyPagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::access("/dev/userfaultfd", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/userfaultfd";
    // Of a path of its own, so that its processes are told from those of other tests.
    std::filesystem::copy_file(STASIS_PAGES, server_);
    ASSERT_THAT(program_.process().remote->Call("mmap", SYS_mmap, kBase, 2 * kPages * kPage,
                                                PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
                IsOk());
  }

  // Every page of the area's first half is to come out of `source`.
  void Register(const ImageSource& source) {
    Result<LazyPages> lazy = LazyPages::Start(server_, source);
    ASSERT_THAT(lazy, IsOk());
    lazy_.emplace(*std::move(lazy));
    LazyPlan plan;
    plan.areas = {{kBase, kBase + 2 * kPages * kPage}};
    plan.later.files = {"pages-1.img"};
    plan.later.Add({.range = {kBase, kBase + kPages * kPage}, .lazy = true});
    ASSERT_THAT(lazy_->Register(program_.process(), plan), IsOk());
  }

  // As a system call of another process reads it.
  std::string Read(std::uint64_t page) {
    std::string bytes(kPage, '?');
    const iovec ours = {bytes.data(), kPage};
    const iovec theirs = {reinterpret_cast<void*>(kBase + page * kPage), kPage};
    EXPECT_EQ(::process_vm_readv(program_.pid(), &ours, 1, &theirs, 1, 0),
              static_cast<ssize_t>(kPage));
    return bytes;
  }

  // The server and its guardian, in this order; nothing while there are not both.
  std::vector<pid_t> Servers() {
    std::map<pid_t, pid_t> parents;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      std::error_code error;
      const auto exe = std::filesystem::read_symlink(entry.path() / "exe", error);
      const auto text = ReadFileAt(AT_FDCWD, entry.path() / "stat");
      if (error || exe != server_ || !text.ok()) continue;
      const auto stat = ParseTaskStat(*text);
      if (stat.ok()) parents[stat->pid] = stat->ppid;
    }
    for (const auto& [pid, parent] : parents) {
      if (parents.contains(parent)) return {pid, parent};
    }
    return {};
  }
  std::vector<pid_t> AwaitServersBut(const std::vector<pid_t>& former) {
    std::vector<pid_t> servers;
    while ((servers = Servers()).empty() || servers == former) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return servers;
  }

  void ExpectKilled() {
    Stop stop;
    do {
      stop = program_.Wait();
      if (stop.kind != Stop::Kind::kExited) (void)program_.process().leader.Continue();
    } while (stop.kind != Stop::Kind::kExited);
    EXPECT_TRUE(WIFSIGNALED(stop.status) && WTERMSIG(stop.status) == SIGKILL);
  }

  ScratchDirectory folder_;
  std::string server_ = folder_ / "pages";
  FreshProgram program_;
  std::optional<LazyPages> lazy_;
};

TEST_F(LazyPagesTest, APageComesWhenItIsAskedForAndAllOthersAfterTheBeginning) {
  Register(NumberedPages(kPages));
  EXPECT_EQ(Read(300), PageOf("300"));
  EXPECT_EQ(Read(kPages + 7), PageOf(""));
  AwaitServersBut({});
  ASSERT_THAT(lazy_->Begin(), IsOk());
  while (!Servers().empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  for (std::uint64_t page = 0; page < kPages; ++page) {
    ASSERT_EQ(program_.Read(kBase + page * kPage, kPage), PageOf(std::to_string(page)));
  }
}

TEST_F(LazyPagesTest, TheProgramDiesWithTheServer) {
  Register(NumberedPages(kPages));
  ::kill(AwaitServersBut({}).front(), SIGKILL);
  ExpectKilled();
}

TEST_F(LazyPagesTest, AGuardianThatDiesHasASuccessor) {
  Register(NumberedPages(kPages));
  const std::vector<pid_t> first = AwaitServersBut({});
  ::kill(first.back(), SIGKILL);
  const std::vector<pid_t> second = AwaitServersBut(first);
  EXPECT_EQ(second.back(), first.front()) << "the server has become the guardian of another one";
  EXPECT_EQ(Read(5), PageOf("5"));
  ::kill(second.front(), SIGKILL);
  ExpectKilled();
}

TEST_F(LazyPagesTest, TheProgramDiesWhenItsPagesCannotBeRead) {
  Register(NumberedPages(kPages / 2));
  ASSERT_THAT(lazy_->Begin(), IsOk());
  ExpectKilled();
}

TEST_F(LazyPagesTest, TheProgramDiesWithWhoRestoresIt) {
  Register(NumberedPages(kPages));
  lazy_.reset();
  ExpectKilled();
}

AreaImage Anonymous(std::uint64_t start, std::uint64_t pages) {
  AreaImage area;
  area.range = {start, start + pages * kPage};
  area.map_flags = MAP_PRIVATE | MAP_ANONYMOUS;
  return area;
}

TEST(LazyPlanTest, OnlyPlainMemoryOfItsOwnComesLater) {
  MemoryLayout layout;
  for (std::uint64_t i = 0; i < 6; ++i) {
    layout.areas.push_back(Anonymous(kBase + i * kPages * kPage, kPages));
  }
  layout.areas[1].locked = true;
  layout.areas[2].advice = std::uint64_t{1} << MADV_WIPEONFORK;
  layout.areas[3].kind = AreaImage::Kind::kPrivateFile;
  PageSet pages;
  pages.files = {"pages-1.img"};
  pages.Add({.range = {kBase, layout.areas[4].range.end}, .lazy = true});
  pages.Add({.range = layout.areas[5].range, .offset = 5 * kPages * kPage});  // not lazy
  const LazyPlan plan = PlanLazyPages(layout, pages, {layout.areas[4].range});
  EXPECT_EQ(plan.areas, std::vector{layout.areas[0].range});
  EXPECT_EQ(plan.later.runs, std::vector{layout.areas[0].range});
  EXPECT_EQ(plan.at_once.runs,
            (std::vector{AddressRange{layout.areas[1].range.start, layout.areas[5].range.end}}));
  EXPECT_EQ(plan.at_once.extents.front().offset, kPages * kPage);
}

}  // namespace
}  // namespace stasis::engine
