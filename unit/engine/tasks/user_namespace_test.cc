#include "engine/tasks/user_namespace.h"

#include "unit/support/matchers.h"
#include "unit/support/memory_images.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::MemoryImages;
using ::stasis::testing::StatusIs;

constexpr std::uint32_t kOfDumper = 7, kOfTree = 12;

CheckpointImages InNamespace(std::uint32_t number) {
  CheckpointImages images;
  images.inventory.mutable_root_ids()->set_user_ns_id(kOfDumper);
  images.processes.emplace_back().ids.set_user_ns_id(number);
  return images;
}

UserIds Ids(std::uint32_t first) {
  UserIds ids;
  ids.users = IdMap::Of({{first, 100'000, 1000}, {5000, 300'000, 10}});
  ids.groups = IdMap::Of({{first, 200'000, 1000}});
  return ids;
}

TEST(UserNamespaceTest, ComesBackWithItsMaps) {
  MemoryImages images;
  ASSERT_THAT(WriteUserNamespace(Ids(0), kOfTree, images), IsOk());
  const auto saved = SavedUserNamespace(InNamespace(kOfTree), images);
  ASSERT_THAT(saved, IsOk());
  ASSERT_TRUE(saved->has_value());
  EXPECT_EQ((*saved)->users.ToInside(300'001), 5001u);
  EXPECT_EQ((*saved)->groups.ToOutside(999).value_or(0), 200'999u);
}

TEST(UserNamespaceTest, NoneIsMadeForATreeInThatOfTheDumper) {
  const auto saved = SavedUserNamespace(InNamespace(kOfDumper), MemoryImages());
  ASSERT_THAT(saved, IsOk());
  EXPECT_FALSE(saved->has_value());
}

TEST(UserNamespaceTest, OneWithoutARootIsRefused) {
  EXPECT_THAT(CheckUserNamespace(Ids(1)), StatusIs(StatusCode::kUnimplemented));
  MemoryImages images;
  ASSERT_THAT(WriteUserNamespace(Ids(1), kOfTree, images), IsOk());
  EXPECT_THAT(SavedUserNamespace(InNamespace(kOfTree), images),
              StatusIs(StatusCode::kUnimplemented));
  EXPECT_FALSE(SavedUserNamespace(InNamespace(kOfTree), MemoryImages()).ok());  // not in them
}

}  // namespace
}  // namespace stasis::engine
