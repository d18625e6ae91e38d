#include <sys/eventfd.h>
#include <unistd.h>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

std::uint64_t Read(int fd) {
  std::uint64_t value = 0;
  EXPECT_EQ(::read(fd, &value, sizeof(value)), 8);
  return value;
}

TEST(EventfdTest, RestoresACounterAbove32BitsInSemaphoreMode) {
  const UniqueFd fd = Fd(::eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK));
  const std::uint64_t counter = 0x100000002;
  ASSERT_EQ(::write(fd.get(), &counter, sizeof(counter)), 8);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(trip.dump.entries[0].efd().counter(), counter);
  EXPECT_EQ(Read(trip.restored.get()), 1u);
  const OpenFile again = Describe(trip.restored.get(), 1);
  EXPECT_THAT(again.fdinfo, ::testing::HasSubstr("eventfd-count:        100000001"));
  EXPECT_EQ(again.flags, static_cast<std::uint32_t>(O_RDWR | O_NONBLOCK));
  EXPECT_EQ(Read(fd.get()), 1u) << "the dump changed the original";
}

TEST(EventfdTest, AnEmptyCounterBlocksItsReaderAsBefore) {
  const UniqueFd fd = Fd(::eventfd(0, EFD_CLOEXEC));
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(Describe(trip.restored.get(), 1).flags, std::uint32_t{O_RDWR});
}

TEST(EventfdTest, RefusesACounterThatNoEventfdCanHave) {
  const UniqueFd fd = Fd(::eventfd(0, 0));
  LocalDumpContext dump;
  dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  dump.entries[0].mutable_efd()->set_counter(~std::uint64_t{0});
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(1), StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace stasis::engine
