#include "engine/mounts/autofs.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "engine/mounts/mount_options.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

// Of Linux 6.18.
constexpr char kServed[] =
    "rw,fd=9,pgrp=42,timeout=300,minproto=5,maxproto=5,indirect,pipe_ino=72981";
constexpr char kSilent[] =
    "rw,fd=-1,gid=100,pgrp=42,timeout=0,minproto=5,maxproto=5,direct,strictexpire,pipe_ino=-1";

TEST(AutofsTest, KnowsTheDaemonByItsGroupAndItsPipe) {
  const auto served = ParseAutofs(kServed);
  ASSERT_THAT(served, IsOk());
  EXPECT_EQ(served->pipe, 72981u);
  EXPECT_EQ(served->entry.ShortDebugString(),
            "fd: 9 pgrp: 42 timeout: 300 minproto: 5 maxproto: 5 mode: 1");
  const auto silent = ParseAutofs(kSilent);
  ASSERT_THAT(silent, IsOk());
  EXPECT_EQ(silent->pipe, std::nullopt);
  EXPECT_EQ(silent->entry.ShortDebugString(),
            "fd: -1 pgrp: 42 timeout: 0 minproto: 5 maxproto: 5 mode: 0 gid: 100");
}

TEST(AutofsTest, RefusesOptionsThatSayTooLittle) {
  for (const char* const text :
       {"", "rw", "fd=9,pgrp=42,timeout=300,minproto=5,maxproto=5,indirect",
        "fd=9,pgrp=42,timeout=300,minproto=5,maxproto=5,pipe_ino=1",
        "fd=x,pgrp=42,timeout=300,minproto=5,maxproto=5,indirect,pipe_ino=1",
        "fd=9,pgrp=42,timeout=300,minproto=5,maxproto=5,indirect,pipe_ino=-2"}) {
    EXPECT_THAT(ParseAutofs(text), StatusIs(StatusCode::kDataLoss)) << text;
  }
}

TEST(AutofsTest, IsMountedWithoutWhatIsOfItsDaemon) {
  image::MntEntry entry;
  entry.set_fstype(image::FSTYPE_AUTOFS);
  entry.set_options(kSilent);
  const auto options = OptionsOf(entry);
  ASSERT_THAT(options, IsOk());
  std::string text;
  for (const auto& [key, value] : *options) text += key + (value ? "=" + *value : "") + " ";
  EXPECT_EQ(text, "gid=100 minproto=5 maxproto=5 direct strictexpire ");
}

}  // namespace
}  // namespace stasis::engine
