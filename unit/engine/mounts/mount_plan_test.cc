#include "engine/mounts/mount_plan.h"

#include <gtest/gtest.h>
#include <sys/sysmacros.h>

#include <map>
#include <string>
#include <vector>

#include "engine/mounts/mount_entry.h"
#include "engine/mounts/pending_mounts.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

// A container's mounts: the root of file system 1, /proc of 2, a volume of 3 from the host's /srv/volume.
class MountPlanTest : public ::testing::Test {
 protected:
  MountPlanTest() {
    Add(1, 0, "/", "overlay", 1, "/");
    Add(2, 1, "/proc", "proc", 2, "/");
    Add(3, 1, "/data", "ext4", 3, "/srv/volume");
  }

  image::MntEntry& Add(int id, int parent, const std::string& place, const std::string& type,
                       std::uint32_t device, const std::string& root) {
    Mount mount;
    mount.id = id;
    mount.parent = parent;
    mount.mountpoint = place;
    mount.fs_type = type;
    mount.dev_minor = device;
    mount.root = root;
    mount.options = "rw";
    return all_.emplace_back(ToMountEntry(mount));
  }
  image::MntEntry& Make(int id, int parent, const std::string& place, const std::string& type,
                        std::uint32_t device, const std::string& root) {
    image::MntEntry& entry = Add(id, parent, place, type, device, root);
    entry.set_made_inside(true);
    return entry;
  }

  // The places in the order in which they are made.
  std::string Order() {
    const auto plan = PlanMounts(all_);
    EXPECT_THAT(plan, IsOk());
    std::string order;
    for (const PlannedMount& mount : plan.value_or(std::vector<PlannedMount>())) {
      order += mount.entry->mountpoint() + " ";
    }
    return order;
  }

  std::vector<image::MntEntry> all_;
};

TEST_F(MountPlanTest, TakesWhatIsBoundFromTheContainersOwnMountOfIt) {
  Make(10, 1, "/to", "ext4", 3, "/srv/volume/part/inner");
  const auto plan = PlanMounts(all_);
  ASSERT_THAT(plan, IsOk());
  EXPECT_FALSE(plan->front().is_new);
  EXPECT_EQ(plan->front().source, 3u);
  EXPECT_EQ(plan->front().path_in_source, "part/inner");
  EXPECT_EQ(plan->front().parent, 1u);
  EXPECT_EQ(plan->front().path_in_parent, "to");
}

TEST_F(MountPlanTest, WaitsForWhatAMountIsOnAndIsAPartOf) {
  Make(10, 11, "/a/b", "tmpfs", 8, "/");
  Make(12, 1, "/part", "tmpfs", 9, "/b");
  Make(11, 1, "/a", "tmpfs", 9, "/");
  // It is /a/b beneath the other mount there that is bound, so it comes before that.
  EXPECT_EQ(Order(), "/a /part /a/b ");
}

TEST_F(MountPlanTest, PutsWhatHidesOthersLast) {
  Make(10, 1, "/a", "tmpfs", 8, "/");
  Make(11, 1, "/a/b/c", "tmpfs", 9, "/");
  EXPECT_EQ(Order(), "/a/b/c /a ");
}

TEST_F(MountPlanTest, RefusesWhatItCannotMake) {
  const std::pair<const char*, const char*> types[] = {
      {"ext4", "only tmpfs"}, {"nsfs", "only tmpfs"}, {"fuse", "only tmpfs"}, {"", "only tmpfs"}};
  for (const auto& [type, reason] : types) {
    Make(10, 1, "/own", type, 9, "/");
    EXPECT_THAT(PlanMounts(all_).status(), StatusIs(StatusCode::kUnimplemented));
    EXPECT_THAT(Message(PlanMounts(all_).status()), HasSubstr(reason));
    all_.pop_back();
  }
  Make(10, 1, "/own", "ext4", 3, "/etc");
  EXPECT_THAT(Message(PlanMounts(all_).status()), HasSubstr("no other mount of"));
}

TEST_F(MountPlanTest, RefusesWhatWouldBeSeenOutside) {
  all_[2].set_shared_id(7);
  Make(10, 3, "/data/own", "tmpfs", 9, "/");
  EXPECT_THAT(Message(PlanMounts(all_).status()), HasSubstr("shared with outside"));
}

TEST_F(MountPlanTest, RefusesPathsThatClimb) {
  for (const char* const root : {"/srv/volume/../secret", "/srv/volume//x", "/srv/volume/./x"}) {
    Make(10, 1, "/own", "ext4", 3, root);
    EXPECT_THAT(PlanMounts(all_).status(), StatusIs(StatusCode::kInvalidArgument)) << root;
    all_.pop_back();
  }
  for (const char* const place : {"/../own", "own", "/own/", ""}) {
    Make(10, 1, place, "tmpfs", 9, "/");
    EXPECT_THAT(PlanMounts(all_).status(), StatusIs(StatusCode::kInvalidArgument)) << place;
    all_.pop_back();
  }
}

TEST_F(MountPlanTest, RefusesMountsThatNoKernelHas) {
  Make(10, 11, "/a", "tmpfs", 9, "/");
  Make(11, 10, "/a", "tmpfs", 8, "/");
  EXPECT_THAT(PlanMounts(all_).status(), StatusIs(StatusCode::kUnimplemented));
  Add(10, 1, "/again", "tmpfs", 9, "/");
  EXPECT_THAT(PlanMounts(all_).status(), StatusIs(StatusCode::kInvalidArgument));
}

TEST_F(MountPlanTest, MakesARootWithAllThatIsOnIt) {
  all_.pop_back();
  Add(4, 1, "/run", "tmpfs", 4, "/");
  Add(5, 4, "/run/again", "overlay", 1, "/part");
  Add(6, 1, "/dev", "ext4", 6, "/srv/dev");
  const auto plan = PlanRoot(all_, {{6, "/srv/dev"}});
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->root, 1u);
  EXPECT_TRUE(plan->refused.empty());
  std::map<std::string, std::string> made;
  for (const PlannedMount& mount : plan->mounts) {
    made[mount.entry->mountpoint()] =
        mount.is_new ? "new" : mount.outside + std::to_string(mount.source) + mount.path_in_source;
  }
  EXPECT_EQ(
      made,
      (std::map<std::string, std::string>{
          {"/proc", "new"}, {"/run", "new"}, {"/run/again", "1part"}, {"/dev", "/srv/dev0"}}));
}

TEST_F(MountPlanTest, SaysWhatOfARootHasToBeGiven) {
  const auto plan = PlanRoot(all_, {});
  ASSERT_THAT(plan, IsOk());
  ASSERT_EQ(plan->refused.size(), 1u);
  EXPECT_EQ(plan->refused.front().first, 3u);
  EXPECT_THAT(Message(plan->refused.front().second), HasSubstr("only the machine has"));
  all_.erase(all_.begin());
  EXPECT_THAT(PlanRoot(all_, {}).status(), StatusIs(StatusCode::kUnimplemented));
}

TEST_F(MountPlanTest, OfARootsOwnTerminalsOneMayBeMounted) {
  all_.pop_back();
  Add(4, 1, "/dev/pts", "devpts", 4, "/");
  Add(5, 1, "/dev/console", "devpts", 4, "/0");
  auto plan = PlanRoot(all_, {});
  ASSERT_THAT(plan, IsOk());
  EXPECT_TRUE(plan->refused.empty());
  const PlannedMount& console = plan->mounts.back();
  EXPECT_TRUE(console.is_terminal);
  EXPECT_EQ(console.source, 4u);
  EXPECT_EQ(console.path_in_source, "0");
  plan = PlanRoot(all_, {{4, "/dev/pts"}});
  ASSERT_THAT(plan, IsOk());
  ASSERT_EQ(plan->refused.size(), 1u) << "one of the machine's";
  EXPECT_EQ(plan->refused.front().first, 5u);
}

TEST(PendingMountsTest, ATerminalThatIsNotTheTreesOwnIsGivenFromOutside) {
  std::vector<image::MntEntry> mounts(2);
  for (image::MntEntry& mount : mounts) {
    mount.set_fstype(image::FSTYPE_DEVPTS);
    mount.set_made_inside(true);
    mount.set_root_dev(7);
  }
  mounts[0].set_root("/3");
  mounts[0].set_mountpoint("/own");
  mounts[1].set_root("/4");
  mounts[1].set_mountpoint("/other");
  GiveTerminals(mounts, [](dev_t device, std::uint32_t index) {
    return device == makedev(0, 7) && index == 3;
  });
  EXPECT_TRUE(mounts[0].made_inside());
  EXPECT_FALSE(mounts[1].made_inside());
  EXPECT_EQ(mounts[1].ext_key(), "/other");
}

}  // namespace
}  // namespace stasis::engine
