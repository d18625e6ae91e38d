#include "engine/dump.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "engine/base/io.h"
#include "engine/image/schema/inventory.pb.h"
#include "unit/engine/dump_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::stasis::testing::Sleep;
using ::stasis::testing::StateOf;
using ::stasis::testing::StatusIs;
using ::stasis::testing::WaitForState;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

// Each of its threads counts in its own word, with floating point on the way, and the program ends with 1
// when an answer is wrong or a system call is disturbed. A sleep may end early when `tracer_dies`: the
// rest of its time is lost with the tracer.
Child Counter(const SharedWords& words, int threads, bool tracer_dies = false) {
  Child child = Program([&] {
    const auto count = [&words, tracer_dies](int i) {
      volatile double sum = 0;
      for (std::uint64_t n = 1;; ++n) {
        sum = sum + 1.0;
        if (sum != static_cast<double>(n)) ::_exit(1);
        words[i] = n;
        timespec blink = {.tv_sec = 0, .tv_nsec = 1000};
        if (n % 64 == 0 && ::nanosleep(&blink, nullptr) != 0 && !tracer_dies) ::_exit(2);
        if (n % 97 == 0 && ::close(-1) != -1) ::_exit(3);
      }
    };
    for (int i = 1; i < threads; ++i) std::thread(count, i).detach();
    count(0);
    return 0;
  });
  for (int i = 0; i < threads; ++i) EXPECT_TRUE(words.WaitAbove(i, 0));
  return child;
}

void ExpectRunsOn(const SharedWords& words, int threads = 1) {
  for (int i = 0; i < threads; ++i) EXPECT_TRUE(words.WaitAbove(i, words[i])) << "thread " << i;
}

std::size_t DescriptorsOf(pid_t pid) {
  const std::filesystem::path folder = "/proc/" + std::to_string(pid) + "/fd";
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

TEST(DumpTest, TheProgramRunsOnAsItWas) {
  SharedWords words;
  Child child = Counter(words, 4);
  const std::string maps = ProcText(child.pid(), "maps");
  const std::size_t descriptors = DescriptorsOf(child.pid());
  MemoryImages images;
  for (int round = 0; round < 5; ++round) {
    images.files.clear();
    const auto report = DumpTo(child.pid(), images);
    ASSERT_THAT(report, IsOk());
    EXPECT_EQ(report->threads, 4u);
    EXPECT_EQ(ProcText(child.pid(), "maps"), maps);
    EXPECT_EQ(DescriptorsOf(child.pid()), descriptors);
    ExpectRunsOn(words, 4);
  }
}

TEST(DumpTest, TheInventoryComesLast) {
  SharedWords words;
  Child child = Prepared(words, [] {});
  MemoryImages images;
  ASSERT_THAT(DumpTo(child.pid(), images), IsOk());
  EXPECT_EQ(images.order.back(), "inventory.img");
  EXPECT_EQ(images.files.at("descriptors.json"), R"(["/dev/null","/dev/null","/dev/null"])");
}

// Tools compare the two, and take a field that is not there for a broken image.
TEST(DumpTest, TheStatisticsCountThePagesThatAreInTheImages) {
  SharedWords words;
  Child child = Prepared(words, [] {
    void* const shared =
        ::mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    std::memset(shared, 7, 1 << 20);
  });
  MemoryImages images;
  const auto report = DumpTo(child.pid(), images);
  ASSERT_THAT(report, IsOk());
  std::uint64_t bytes = 0;
  for (const auto& [name, content] : images.files) {
    if (name.starts_with("pages-")) bytes += content.size();
  }
  images.files["stats-dump"] = report->StatsImage();
  const auto stats = ReadOne<image::StatsEntry>(images, "stats-dump", "stats-dump");
  ASSERT_THAT(stats, IsOk());
  EXPECT_TRUE(stats->dump().has_shpages_scanned() && stats->dump().has_shpages_skipped_parent());
  EXPECT_GE(stats->dump().shpages_written(), 256u);
  EXPECT_EQ((stats->dump().pages_written() + stats->dump().shpages_written()) * 4096, bytes);
}

// There it could go on by this kernel alone.
TEST(DumpTest, NobodyIsLeftInTheVdso) {
  const std::uint64_t vdso = ::getauxval(AT_SYSINFO_EHDR);
  for (int i = 0; i < 10; ++i) {
    SharedWords words;
    Child child = Prepared(words, [] {
      std::thread([] {
        while (true) {
          timespec now = {};
          ::clock_gettime(CLOCK_MONOTONIC, &now);
          for (volatile int n = 0; n < 20;) n = n + 1;
        }
      }).detach();
    });
    MemoryImages images;
    DumpRequest request = AllAtOnce();
    request.root = child.pid();
    request.fate = Fate::kLeaveStopped;
    ASSERT_THAT(Dump(request, images), IsOk());
    const auto loaded = LoadCheckpoint(images);
    ASSERT_THAT(loaded, IsOk());
    for (const ThreadImage& thread : loaded->processes.front().threads) {
      const std::uint64_t at = thread.core.thread_info().gpregs().ip();
      EXPECT_FALSE(vdso <= at && at < vdso + 8192);
    }
  }
}

TEST(DumpTest, NothingRunsWhileTheCallerWorksOnTheFrozenTree) {
  SharedWords words;
  Child child = Counter(words, 2);
  MemoryImages images;
  DumpRequest request = AllAtOnce();
  request.root = child.pid();
  request.while_frozen = [&](std::span<const pid_t>) {
    const std::uint64_t before = words[1];
    ::usleep(20'000);
    EXPECT_EQ(words[1], before);
    EXPECT_FALSE(images.files.contains("inventory.img"));
    return Unavailable("no file system");
  };
  EXPECT_THAT(Dump(request, images), StatusIs(StatusCode::kUnavailable, "no file system"));
  ExpectRunsOn(words, 2);
}

TEST(DumpTest, ACancelledDumpLetsTheTreeRun) {
  SharedWords words;
  Child child = Counter(words, 2);
  MemoryImages images;
  std::stop_source stop;
  DumpRequest request = AllAtOnce();
  request.root = child.pid();
  request.stop = stop.get_token();
  request.progress = [&](std::uint64_t, std::uint64_t) { stop.request_stop(); };
  EXPECT_THAT(Dump(request, images), StatusIs(StatusCode::kCancelled));
  EXPECT_FALSE(images.files.contains("inventory.img"));
  ExpectRunsOn(words, 2);
}

TEST(DumpTest, ADumpPastItsDeadlineLetsTheTreeRun) {
  SharedWords words;
  Child child = Counter(words, 2);
  MemoryImages images;
  DumpRequest request = AllAtOnce();
  request.root = child.pid();
  request.deadline = steady_clock::now() + milliseconds(500);
  request.progress = [&](std::uint64_t, std::uint64_t) {
    std::this_thread::sleep_until(request.deadline);
  };
  // A task that could not be stopped in time runs on when the thread that traced it ends.
  std::thread([&] {
    EXPECT_THAT(Dump(request, images), StatusIs(StatusCode::kDeadlineExceeded));
  }).join();
  ExpectRunsOn(words, 2);
}

TEST(DumpTest, AFullDiskLetsEvenATreeThatIsToDieRunOn) {
  SharedWords words;
  Child child = Counter(words, 2);
  for (const char* const file : {"pages-1.img", "files.img", "inventory.img"}) {
    MemoryImages images;
    images.on_open = [&](std::string_view name) {
      return name == file ? ResourceExhausted("no space left") : OkStatus();
    };
    DumpRequest request = AllAtOnce();
    request.root = child.pid();
    request.fate = Fate::kKill;
    EXPECT_THAT(Dump(request, images), StatusIs(StatusCode::kResourceExhausted)) << file;
    ExpectRunsOn(words, 2);
  }
}

TEST(DumpTest, ATreeIsKilledOnceItsCheckpointIsDurable) {
  SharedWords words;
  Child child = Program([&] {
    if (const pid_t inner = ::fork(); inner != 0) words[0] = static_cast<std::uint64_t>(inner);
    std::thread([] { Sleep(); }).detach();
    return Sleep();
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  MemoryImages images;
  DumpRequest request = AllAtOnce();
  request.root = child.pid();
  request.fate = Fate::kKill;
  request.commit = [&](const DumpReport&) { return Unavailable("fsync"); };
  EXPECT_THAT(Dump(request, images), StatusIs(StatusCode::kUnavailable));
  WaitForState(child.pid(), 'S');

  images.files.clear();
  request.commit = [&](const DumpReport&) {
    EXPECT_EQ(StateOf(child.pid()), 't');
    return images.files.contains("inventory.img") ? OkStatus() : Internal("no inventory");
  };
  ASSERT_THAT(Dump(request, images), IsOk());
  EXPECT_EQ(StateOf(child.pid()), '?');  // the dump has waited for it: it was a child of ours
  child.Forget();
  const char inner = StateOf(static_cast<pid_t>(words[0].load()));
  EXPECT_TRUE(inner == '?' || inner == 'Z') << inner;
}

TEST(DumpTest, ATreeIsLeftStoppedAndGoesOnBySigcont) {
  SharedWords words;
  Child child = Counter(words, 2);
  MemoryImages images;
  DumpRequest request = AllAtOnce();
  request.root = child.pid();
  request.fate = Fate::kLeaveStopped;
  ASSERT_THAT(Dump(request, images), IsOk());
  WaitForState(child.pid(), 'T');
  ::kill(child.pid(), SIGCONT);
  ExpectRunsOn(words, 2);
}

TEST(DumpTest, WeOurselvesAndOurAncestorsAreRefused) {
  MemoryImages images;
  for (const pid_t pid : {::getpid(), ::getppid(), 1}) {
    EXPECT_THAT(DumpTo(pid, images), StatusIs(StatusCode::kInvalidArgument)) << pid;
  }
  EXPECT_THAT(DumpTo(0, images), StatusIs(StatusCode::kInvalidArgument));
  // In a pid namespace of its own the test sees none, and may be 2 itself.
  if (ReadFileAt(AT_FDCWD, "/proc/2/comm").value_or("") == "kthreadd\n") {
    EXPECT_THAT(DumpTo(2, images),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("kernel thread")));
  }
  EXPECT_THAT(DumpTo(4'000'000, images), StatusIs(StatusCode::kNotFound));
}

TEST(DumpTest, SleepingSystemCallsAreNotDisturbed) {
  SharedWords words;
  Child child = Program([&] {
    int pipe[2];
    if (::pipe(pipe) != 0) return 1;
    std::thread writer([&] {
      timespec rest = {.tv_sec = 0, .tv_nsec = 300'000'000};
      words[0] = 1;
      // A restart block: what is left of the time is not in the registers.
      if (::nanosleep(&rest, nullptr) != 0) ::_exit(2);
      (void)!::write(pipe[1], "x", 1);
    });
    char letter = 0;
    const bool good = ::read(pipe[0], &letter, 1) == 1 && letter == 'x';
    writer.join();
    return good ? 0 : 3;
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  MemoryImages images;
  EXPECT_THAT(DumpTo(child.pid(), images), IsOk());
  EXPECT_EQ(child.Wait(), 0);
}

TEST(DumpTest, OnlyAConnectionAsksForTheConsentToCloseIt) {
  for (const bool connects : {false, true}) {
    SharedWords words;
    Child child = Prepared(words, [connects] {
      sockaddr_in address = {};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      socklen_t size = sizeof(address);
      auto* const name = reinterpret_cast<sockaddr*>(&address);
      const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
      if (::bind(listener, name, size) != 0 || ::listen(listener, 1) != 0) ::_exit(1);
      if (!connects) return;
      const int client = ::socket(AF_INET, SOCK_STREAM, 0);
      if (::getsockname(listener, name, &size) != 0) ::_exit(1);
      if (::connect(client, name, size) != 0) ::_exit(1);
    });
    MemoryImages images;
    EXPECT_EQ(ImagesOf(child.pid(), images).inventory.tcp_close(), connects);
  }
}

TEST(DumpTest, ATracerThatIsKilledAtAnyMomentDoesNoHarm) {
  SharedWords words;
  Child victim = Counter(words, 3, /*tracer_dies=*/true);
  const std::uint32_t seed = std::random_device()();
  std::mt19937 random(seed);
  std::uniform_int_distribution<useconds_t> delay(0, 40'000);
  for (int round = 0; round < 50; ++round) {
    Child tracer([&] {
      while (true) {
        MemoryImages images;
        if (!DumpTo(victim.pid(), images).ok()) return 1;
      }
    });
    ::usleep(delay(random));
    ::kill(tracer.pid(), SIGKILL);
    (void)tracer.Wait();
    if (StateOf(victim.pid()) == 'Z') {
      FAIL() << "wait status " << victim.Wait() << ", round " << round << ", seed " << seed;
    }
    ExpectRunsOn(words, 3);
  }
  EXPECT_THAT(ProcText(victim.pid(), "status"), HasSubstr("SigBlk:\t0000000000000000"));
}

}  // namespace
}  // namespace stasis::engine
