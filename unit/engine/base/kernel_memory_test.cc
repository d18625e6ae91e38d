#include "engine/base/kernel_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "unit/support/matchers.h"

namespace stasis {
namespace {

using testing::IsOk;
using testing::StatusIs;

class KernelMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<KernelMemory> memory = KernelMemory::Open();
    if (!memory.ok()) GTEST_SKIP() << memory.status();
    memory_.emplace(*std::move(memory));
  }
  std::optional<KernelMemory> memory_;
};

TEST_F(KernelMemoryTest, ReadsTheNameOfOurTask) {
  const auto task = memory_->Current();
  ASSERT_TRUE(task.ok()) << task.status();
  const auto at = memory_->AddressOf(*task, "task_struct", "comm");
  ASSERT_TRUE(at.ok()) << at.status();
  const auto name = memory_->Value<std::array<char, 16>>(*at);
  ASSERT_TRUE(name.ok()) << name.status();
  std::array<char, 16> ours = {};
  ASSERT_EQ(::pthread_getname_np(::pthread_self(), ours.data(), ours.size()), 0);
  EXPECT_STREQ(name->data(), ours.data());
}

TEST_F(KernelMemoryTest, KnowsOneOpenFileByTwoDescriptors) {
  const UniqueFd one(::eventfd(5, EFD_CLOEXEC)), other(::eventfd(5, EFD_CLOEXEC));
  const UniqueFd again(::fcntl(one.get(), F_DUPFD_CLOEXEC, 0));
  const auto file = memory_->FileOf(one.get());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(memory_->FileOf(again.get()).value_or(0), *file);
  EXPECT_NE(memory_->FileOf(other.get()).value_or(0), *file);
  const auto counter = memory_->Number(*file, "file", "private_data");
  ASSERT_TRUE(counter.ok()) << counter.status();
  EXPECT_EQ(memory_->Number(*counter, "eventfd_ctx", "count").value_or(0), 5u);
}

TEST_F(KernelMemoryTest, HasNoFileForAClosedDescriptor) {
  EXPECT_THAT(memory_->FileOf(1 << 20).status(), StatusIs(StatusCode::kNotFound));
  EXPECT_THAT(memory_->FileOf(-1).status(), StatusIs(StatusCode::kNotFound));
}

TEST_F(KernelMemoryTest, TellsWhereNothingIs) {
  EXPECT_FALSE(memory_->Value<std::uint64_t>(8).ok());
  EXPECT_FALSE(memory_->Value<std::uint64_t>(0xffff'ffff'ffff'f000).ok());
}

TEST_F(KernelMemoryTest, ReadsMoreThanOnePieceAtOnce) {
  const auto task = memory_->Current();
  ASSERT_TRUE(task.ok()) << task.status();
  const auto stack = memory_->Number(*task, "task_struct", "stack");
  ASSERT_TRUE(stack.ok()) << stack.status();
  std::vector<std::byte> bytes(16384), first(64);
  ASSERT_THAT(memory_->Read(*stack, bytes), IsOk());
  ASSERT_THAT(memory_->Read(*stack, first), IsOk());
  EXPECT_EQ(std::memcmp(bytes.data(), first.data(), first.size()),
            0);  // its lowest words are at rest
}

TEST_F(KernelMemoryTest, SumsACounterOfAllProcessors) {
  // mm_struct.rss_stat[MM_ANONPAGES], a percpu_counter from Linux 6.2 on, to which memory that we touch is added.
  const auto task = memory_->Current();
  const auto mm = memory_->Number(*task, "task_struct", "mm");
  ASSERT_TRUE(mm.ok()) << mm.status();
  const auto counters = memory_->AddressOf(*mm, "mm_struct", "rss_stat");
  const auto size = memory_->btf().SizeOf("percpu_counter");
  const auto all = memory_->btf().Find("mm_struct", "rss_stat");
  if (!counters.ok() || all->size % *size != 0) GTEST_SKIP() << "no such counter in this kernel";
  constexpr std::uint64_t kAnonymousPages = 1;
  const KernelAddress counter = *counters + kAnonymousPages * *size;
  const auto before = memory_->SumOf(counter);
  ASSERT_TRUE(before.ok()) << before.status();
  constexpr std::size_t kPages = 1000;
  void* const touched = ::mmap(nullptr, kPages * 4096, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  ASSERT_NE(touched, MAP_FAILED);
  const auto after = memory_->SumOf(counter);
  ASSERT_TRUE(after.ok()) << after.status();
  ::munmap(touched, kPages * 4096);
  EXPECT_GE(*after - *before, 900);
  EXPECT_LE(*after - *before, 1200);
}

}  // namespace
}  // namespace stasis
