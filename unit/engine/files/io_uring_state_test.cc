#include "engine/files/io_uring_state.h"

#include <gtest/gtest.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <optional>

#include "engine/files/io_uring.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

class RingStateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<RingReader> reader = RingReader::Create();
    if (!reader.ok()) GTEST_SKIP() << reader.status();
    reader_.emplace(*std::move(reader));
  }

  // A ring of four entries; the test ends where there is none to be had.
  UniqueFd Make(std::uint32_t flags) {
    parameters_ = {};
    parameters_.flags = flags;
    return UniqueFd(static_cast<int>(::syscall(SYS_io_uring_setup, 4, &parameters_)));
  }

  // Submits one request.
  void Submit(int fd, const io_uring_sqe& request) {
    const auto ring = RingMemory::Map(fd, IORING_OFF_SQ_RING, 4096);
    const auto entries = RingMemory::Map(fd, IORING_OFF_SQES, 4096);
    ASSERT_TRUE(ring.ok() && entries.ok());
    auto* const tail =
        reinterpret_cast<std::uint32_t*>(ring->bytes().data() + parameters_.sq_off.tail);
    auto* const array =
        reinterpret_cast<std::uint32_t*>(ring->bytes().data() + parameters_.sq_off.array);
    const std::uint32_t place = *tail & 3;
    array[place] = place;
    reinterpret_cast<io_uring_sqe*>(entries->bytes().data())[place] = request;
    std::atomic_ref(*tail).fetch_add(1);
    ASSERT_EQ(::syscall(SYS_io_uring_enter, fd, 1, 0, 0, nullptr, 0), 1);
  }

  std::optional<RingReader> reader_;
  io_uring_params parameters_ = {};
};

TEST_F(RingStateTest, KnowsHowARingWasSetUp) {
  for (const std::uint32_t flags :
       {0u, IORING_SETUP_SUBMIT_ALL, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_R_DISABLED,
        IORING_SETUP_SQE128 | IORING_SETUP_CQE32}) {
    const UniqueFd fd = Make(flags);
    if (!fd) GTEST_SKIP() << "no such ring here";
    const auto state = reader_->Read(fd.get());
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(state->setup_flags, flags);
    EXPECT_EQ(state->sq_entries, 4u);
    EXPECT_EQ(state->cq_entries, 8u);
    EXPECT_EQ(state->busy, "");
    const bool is_single = (flags & IORING_SETUP_SINGLE_ISSUER) != 0;
    EXPECT_EQ(state->submitter, is_single ? std::optional(::gettid()) : std::nullopt);
  }
}

TEST_F(RingStateTest, RefusesAThreadThatPolls) {
  const UniqueFd fd = Make(IORING_SETUP_SQPOLL);
  if (!fd) GTEST_SKIP() << "no such ring here";
  EXPECT_THAT(reader_->Read(fd.get()).status(),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("IORING_SETUP_SQPOLL")));
}

TEST_F(RingStateTest, CountsWhatIsUnderWay) {
  const UniqueFd fd = Make(0);
  if (!fd) GTEST_SKIP() << "no io_uring here";
  io_uring_sqe nothing = {};
  Submit(fd.get(), nothing);
  const auto idle = reader_->Read(fd.get());
  ASSERT_TRUE(idle.ok()) << idle.status();
  EXPECT_EQ(idle->busy, "");
  EXPECT_EQ(idle->sq_head, 1u);
  EXPECT_EQ(idle->cq_tail, 1u);
  ASSERT_EQ(idle->users.size(), 1u);
  EXPECT_EQ(idle->users.front().tid, ::gettid());
  const __kernel_timespec long_time = {.tv_sec = 1000, .tv_nsec = 0};
  io_uring_sqe timeout = {};
  timeout.opcode = IORING_OP_TIMEOUT;
  timeout.fd = -1;
  timeout.addr = reinterpret_cast<std::uint64_t>(&long_time);
  timeout.len = 1;
  Submit(fd.get(), timeout);
  Submit(fd.get(), timeout);
  const auto busy = reader_->Read(fd.get());
  ASSERT_TRUE(busy.ok()) << busy.status();
  EXPECT_EQ(busy->users.front().under_way, 2);
  EXPECT_THAT(busy->busy, HasSubstr("under way: 2"));
}

TEST_F(RingStateTest, KnowsTheEventfd) {
  const UniqueFd fd = Make(0);
  if (!fd) GTEST_SKIP() << "no io_uring here";
  const UniqueFd told(::eventfd(0, EFD_CLOEXEC)), other(::eventfd(0, EFD_CLOEXEC));
  const int number = told.get();
  ASSERT_EQ(::syscall(SYS_io_uring_register, fd.get(), IORING_REGISTER_EVENTFD_ASYNC, &number, 1),
            0);
  const auto state = reader_->Read(fd.get());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->eventfd, reader_->EventfdOf(told.get()).value_or(0));
  EXPECT_NE(state->eventfd, reader_->EventfdOf(other.get()).value_or(0));
  EXPECT_TRUE(state->eventfd_async);
}

TEST_F(RingStateTest, KnowsTheFramesOfABuffer) {
  const UniqueFd fd = Make(0);
  if (!fd) GTEST_SKIP() << "no io_uring here";
  constexpr std::size_t kSize = 3 * 4096;
  auto* const memory = static_cast<char*>(::mmap(
      nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  const std::array<iovec, 2> buffers = {iovec{memory + 100, kSize - 200}, iovec{nullptr, 0}};
  ASSERT_EQ(::syscall(SYS_io_uring_register, fd.get(), IORING_REGISTER_BUFFERS, buffers.data(), 2),
            0);
  const auto state = reader_->Read(fd.get());
  ASSERT_TRUE(state.ok()) << state.status();
  ASSERT_EQ(state->buffers.size(), 2u);
  const RingBuffer& buffer = state->buffers.front();
  EXPECT_EQ(buffer.address, reinterpret_cast<std::uint64_t>(memory) + 100);
  EXPECT_EQ(buffer.length, kSize - 200);
  EXPECT_EQ(buffer.frames.size(), 3u);
  EXPECT_EQ(state->buffers.back().length, 0u);
  ::munmap(memory, kSize);
}

}  // namespace
}  // namespace stasis::engine
