#include "engine/tasks/seccomp_filter.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstddef>
#include <vector>

namespace stasis::engine {
namespace {

SeccompFilter Filter(const std::vector<sock_filter>& program) {
  return {std::string(reinterpret_cast<const char*>(program.data()),
                      program.size() * sizeof(sock_filter))};
}

constexpr auto kNumber = static_cast<std::uint32_t>(offsetof(seccomp_data, nr));
constexpr auto kFirst = static_cast<std::uint32_t>(offsetof(seccomp_data, args));

SeccompFilter OnlyFor(std::uint32_t number, std::uint32_t matched, std::uint32_t other) {
  return Filter({BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kNumber),
                 BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
                 BPF_STMT(BPF_RET | BPF_K, matched), BPF_STMT(BPF_RET | BPF_K, other)});
}

TEST(SeccompFilterTest, TheStrictestFilterCounts) {
  const SeccompFilter most = OnlyFor(SYS_getpid, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_ALLOW);
  const SeccompFilter logs = OnlyFor(SYS_prctl, SECCOMP_RET_LOG, SECCOMP_RET_ERRNO | 1);
  EXPECT_TRUE(Allows({}, {.number = SYS_getpid}, 0));
  EXPECT_TRUE(Allows({most}, {.number = SYS_prctl}, 0));
  EXPECT_FALSE(Allows({most}, {.number = SYS_getpid}, 0));
  EXPECT_TRUE(Allows({most, logs}, {.number = SYS_prctl}, 0));
  EXPECT_FALSE(Allows({most, logs}, {.number = SYS_brk}, 0));
}

// libseccomp compares arguments under a mask, word by word.
TEST(SeccompFilterTest, ArgumentsAreLookedAtInWords) {
  const SeccompFilter filter = Filter(
      {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kFirst), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff),
       BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_GET_DUMPABLE, 0, 3),
       BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kFirst + 4), BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 0, 1, 0),
       BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP)});
  const auto allows = [&](std::uint64_t argument) {
    return Allows({filter}, {.number = SYS_prctl, .arguments = {argument}}, 0);
  };
  EXPECT_TRUE(allows(PR_GET_DUMPABLE));
  EXPECT_TRUE(allows(PR_GET_DUMPABLE | 0x100));
  EXPECT_FALSE(allows(PR_GET_PDEATHSIG));
  EXPECT_FALSE(allows(PR_GET_DUMPABLE | std::uint64_t{1} << 32));
}

TEST(SeccompFilterTest, AProgramThatIsNotUnderstoodAllowsNothing) {
  const SeccompFilter divides =
      Filter({BPF_STMT(BPF_LD | BPF_IMM, 6), BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 2),
              BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)});
  const SeccompFilter outside = Filter({BPF_STMT(BPF_LD | BPF_W | BPF_ABS, sizeof(seccomp_data)),
                                        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)});
  const SeccompFilter endless = Filter({BPF_STMT(BPF_LD | BPF_IMM, 6)});
  for (const SeccompFilter& filter : {divides, outside, endless}) {
    EXPECT_FALSE(Allows({filter}, {.number = SYS_getpid}, 0));
  }
}

}  // namespace
}  // namespace stasis::engine
