#include "engine/memory/system_v.h"

#include <sys/shm.h>
#include <unistd.h>

#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

TEST(SystemVTest, ASegmentIsReadInItsNamespace) {
  const int id = ::shmget(IPC_PRIVATE, 10000, IPC_CREAT | 0640);
  ASSERT_GE(id, 0);
  const auto entry = ReadSegment(::getpid(), id);
  ASSERT_EQ(::shmctl(id, IPC_RMID, nullptr), 0);
  ASSERT_THAT(entry, IsOk());
  EXPECT_EQ(entry->size(), 10000u);
  EXPECT_EQ(entry->desc().mode(), 0640u);
  EXPECT_EQ(entry->desc().uid(), ::geteuid());
  EXPECT_EQ(entry->desc().id(), static_cast<std::uint32_t>(id));
  EXPECT_THAT(ReadSegment(::getpid(), id), StatusIs(StatusCode::kNotFound));
}

TEST(SystemVTest, RefusesASegmentThatComesTwice) {
  image::IpcShmEntry entry;
  entry.mutable_desc()->set_id(5);
  EXPECT_THAT(SegmentRestorer::Create({entry}), IsOk());
  EXPECT_THAT(SegmentRestorer::Create({entry, entry}), StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace stasis::engine
