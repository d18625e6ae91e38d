#include "archive/xattrs.h"

#include "unit/support/matchers.h"

namespace stasis::archive {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

constexpr char kAcl[] = "system.posix_acl_access", kCapability[] = "security.capability";

UserIds Mapped() {
  UserIds ids;
  ids.users = *IdMap::Parse("0 100000 1000\n");
  ids.groups = *IdMap::Parse("0 200000 1000\n");
  return ids;
}

std::string Bytes(std::initializer_list<std::uint32_t> words) {
  std::string bytes;
  for (const std::uint32_t word : words) {
    bytes.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
  return bytes;
}

// Version; user and its id; group and its id; all others, who have none.
std::string Acl(std::uint32_t user, std::uint32_t group) {
  return Bytes({2, 0x0006'0002, user, 0x0004'0008, group, 0x0000'0020, 0xffff'ffff});
}

TEST(XattrsTest, AclsNameWhoTheyNameInside) {
  Xattrs xattrs = {{kAcl, Acl(100'007, 200'008)}, {"user.note", "as it is"}};
  ShowXattrsInside(Mapped(), xattrs);
  EXPECT_EQ(xattrs[kAcl], Acl(7, 8));
  EXPECT_EQ(xattrs["user.note"], "as it is");
  EXPECT_EQ(XattrOutside(Mapped(), kAcl, Acl(7, 8)).value_or(""), Acl(100'007, 200'008));
  EXPECT_THAT(XattrOutside(Mapped(), kAcl, Acl(1000, 8)),
              StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_THAT(XattrOutside(Mapped(), kAcl, "abc"), StatusIs(StatusCode::kInvalidArgument));
}

TEST(XattrsTest, ACapabilityCountsInsideAlone) {
  const std::string plain = Bytes({0x0200'0001, 0x400, 0, 0, 0});
  const std::string of_root = Bytes({0x0300'0001, 0x400, 0, 0, 0, 100'000});
  Xattrs xattrs = {{kCapability, of_root}};
  ShowXattrsInside(Mapped(), xattrs);
  EXPECT_EQ(xattrs[kCapability], plain);
  // Never one that counts outside: neither an archive's, nor what is there.
  EXPECT_EQ(XattrOutside(Mapped(), kCapability, plain).value_or(""), of_root);
  xattrs = {{kCapability, plain}};
  ShowXattrsInside(Mapped(), xattrs);
  EXPECT_TRUE(xattrs.empty());
  EXPECT_THAT(XattrOutside(Mapped(), kCapability, Bytes({0x0300'0001, 1, 0, 0, 0, 1000})),
              StatusIs(StatusCode::kFailedPrecondition));
}

TEST(XattrsTest, OursAreLeftAsTheyAre) {
  Xattrs xattrs = {{kAcl, Acl(7, 8)}, {kCapability, "anything"}};
  ShowXattrsInside({}, xattrs);
  EXPECT_EQ(xattrs[kAcl], Acl(7, 8));
  EXPECT_EQ(XattrOutside({}, kCapability, xattrs[kCapability]).value_or(""), "anything");
}

}  // namespace
}  // namespace stasis::archive
