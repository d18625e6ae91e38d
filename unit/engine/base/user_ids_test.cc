#include "engine/base/user_ids.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <string>

#include "engine/base/io.h"
#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

TEST(IdMapTest, FindsAnIdInEachExtent) {
  const auto map =
      IdMap::Parse("         0     100000       1000\n      5000     300000         10\n");
  ASSERT_THAT(map, IsOk());
  EXPECT_EQ(map->ToInside(100'999), 999u);
  EXPECT_EQ(map->ToInside(300'009), 5009u);
  EXPECT_EQ(map->ToOutside(0).value_or(1), 100'000u);
  EXPECT_EQ(map->ToOutside(5009).value_or(1), 300'009u);
}

TEST(IdMapTest, AnIdThatIsInNoneIsNobodysAndCannotBeGiven) {
  const auto map = IdMap::Parse("0 100000 1000\n");
  ASSERT_THAT(map, IsOk());
  EXPECT_EQ(map->ToInside(0), 65534u);  // ours is not its
  EXPECT_EQ(map->ToInside(101'000), 65534u);
  EXPECT_THAT(map->ToOutside(1000),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("no id 1000")));
  EXPECT_THAT(IdMap::Parse("")->ToOutside(0), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_THAT(IdMap::Parse("0 1\n"), StatusIs(StatusCode::kDataLoss));
}

TEST(IdMapTest, OurOwnIsTheSame) {
  EXPECT_EQ(IdMap().ToInside(7), 7u);
  EXPECT_EQ(IdMap().ToOutside(7).value_or(1), 7u);
}

// A process in a user namespace with ids of its own, for as long as the test.
class UserIdsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    child_.emplace([] {
      ::unshare(CLONE_NEWUSER);
      while (true) ::pause();
      return 0;
    });
    const std::string folder = "/proc/" + std::to_string(child_->pid());
    for (int tries = 0; UserIds::OfPid(child_->pid())->are_ours(); ++tries) {
      if (tries == 2000) GTEST_SKIP() << "this machine allows no user namespace";
      ::usleep(1000);
    }
    for (const char* const map : {"/uid_map", "/gid_map"}) {
      const UniqueFd fd(::open((folder + map).c_str(), O_WRONLY | O_CLOEXEC));
      ASSERT_THAT(WriteAll(fd.get(), "0 70000 100\n"), IsOk());
    }
  }

  std::optional<Child> child_;
};

TEST_F(UserIdsTest, OwnersAreGivenAndShownAsItHasThem) {
  const auto ids = UserIds::OfPid(child_->pid());
  ASSERT_THAT(ids, IsOk());
  const UniqueFd file(::memfd_create("owned", MFD_CLOEXEC));
  EXPECT_THAT(ChangeOwner(file.get(), 5, 6, *ids), IsOk());
  struct stat st = {};
  ASSERT_EQ(::fstat(file.get(), &st), 0);
  EXPECT_EQ(st.st_uid, 70'005u);
  ids->ShowInside(st);
  EXPECT_EQ(st.st_uid, 5u);
  EXPECT_EQ(st.st_gid, 6u);
  EXPECT_THAT(ChangeOwner(file.get(), 100, 6, *ids), StatusIs(StatusCode::kFailedPrecondition));
}

TEST_F(UserIdsTest, WhatItsRootMakesIsItsOwn) {
  const auto ids = UserIds::OfPid(child_->pid());
  ASSERT_THAT(ids, IsOk());
  struct stat st = {};
  EXPECT_THAT(AsRootOf(*ids,
                       [&]() -> Status {
                         const UniqueFd file(::memfd_create("made", MFD_CLOEXEC));
                         if (::fstat(file.get(), &st) != 0) return SyscallError(errno, "fstat");
                         // Our capabilities are still there.
                         return ::fchown(file.get(), 1, 1) == 0 ? OkStatus()
                                                                : SyscallError(errno, "fchown");
                       }),
              IsOk());
  EXPECT_EQ(st.st_uid, 70'000u);
  EXPECT_EQ(::geteuid(), 0u);
}

}  // namespace
}  // namespace stasis
