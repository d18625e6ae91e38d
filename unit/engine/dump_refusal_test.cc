#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <thread>

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
using ::testing::HasSubstr;

constexpr std::size_t kSize = 16 * 4096;

void* Map() {
  return ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

// A second process that shares with the first what `flags` say.
void CloneWith(unsigned long flags) {
  static char stack[65536];
  ::clone([](void*) { return Sleep(); }, stack + sizeof(stack), static_cast<int>(flags) | SIGCHLD,
          nullptr);
}

struct Case {
  const char* name;
  const char* message;  // a part of it
  /// False: this machine lacks what is to be refused.
  bool (*prepare)(const SharedWords&);
};

const Case kCases[] = {
    {"ProtectionKey", "protection key",
     [](const SharedWords&) {
       const int key = ::pkey_alloc(0, 0);
       return key > 0 && ::pkey_mprotect(Map(), kSize, PROT_READ, key) == 0;
     }},
    {"SharedMemory", "share their memory",
     [](const SharedWords&) { return CloneWith(CLONE_VM), true; }},
    {"ThreadWithItsOwnDescriptors", "of its own",
     [](const SharedWords&) {
       static std::atomic<int> done = 0;
       std::thread([] {
         ::unshare(CLONE_FILES);
         done = 1;
         Sleep();
       }).detach();
       while (done == 0) ::usleep(1000);
       return true;
     }},
    {"ChildInANamespace", "another uts namespace",
     [](const SharedWords& words) {
       if (::fork() != 0) return words.WaitAbove(3, 0);
       words[3] = ::unshare(CLONE_NEWUTS) == 0;
       return Sleep() == 0;
     }},
    {"PidNamespaceForChildren", "in another namespace",
     [](const SharedWords&) { return ::unshare(CLONE_NEWPID) == 0; }},
    {"ChildInAUserNamespace", "another user namespace",
     [](const SharedWords& words) {
       if (::fork() != 0) return words.WaitAbove(3, 0);
       words[3] = ::unshare(CLONE_NEWUSER) == 0;
       return Sleep() == 0;
     }},
};

class DumpRefusalTest : public ::testing::TestWithParam<Case> {};

TEST_P(DumpRefusalTest, NamesTheThingAndLetsTheTreeRun) {
  SharedWords words;
  Child child = Program([&] {
    words[1] = GetParam().prepare(words);
    words[0] = 1;
    while (true) {
      ++words[2];
      ::usleep(1000);
    }
    return 0;
  });
  ASSERT_TRUE(words.WaitAbove(0, 0));
  if (words[1] == 0) GTEST_SKIP() << "this machine has no such thing";
  MemoryImages images;
  EXPECT_THAT(DumpTo(child.pid(), images),
              StatusIs(StatusCode::kUnimplemented, HasSubstr(GetParam().message)));
  EXPECT_TRUE(images.files.empty());
  EXPECT_TRUE(words.WaitAbove(2, words[2]));
  const std::string inner =
      ProcText(child.pid(), "task/" + std::to_string(child.pid()) + "/children");
  if (!inner.empty()) ::kill(std::stoi(inner), SIGKILL);
}

INSTANTIATE_TEST_SUITE_P(All, DumpRefusalTest, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return test.param.name; });

TEST(DumpRefusalTest, StrictSeccompStaysInForceAfterADump) {
  SharedWords words;
  Child child = Program([&] {
    words[0] = 1;
    ::syscall(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0);
    while (true) ++words[2];
    return 0;
  });
  ASSERT_TRUE(words.WaitAbove(2, 0));
  MemoryImages images;
  EXPECT_THAT(DumpTo(child.pid(), images), IsOk());
  EXPECT_TRUE(words.WaitAbove(2, words[2]));
}

}  // namespace
}  // namespace stasis::engine
