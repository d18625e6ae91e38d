#include "engine/base/status.h"

#include <cerrno>

#include "unit/support/matchers.h"

namespace stasis {
namespace {

using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

TEST(StatusTest, ASyscallErrorKeepsItsErrnoThroughAnnotations) {
  const Status status = Annotate(SyscallError(ESRCH, "ptrace GETREGSET tid 42"), "pid 7");
  EXPECT_THAT(status, StatusIs(StatusCode::kNotFound, HasSubstr("pid 7: ptrace GETREGSET tid 42")));
  EXPECT_EQ(ErrnoOf(status), ESRCH);
}

TEST(StatusTest, AnErrorWithoutErrnoHasNone) { EXPECT_EQ(ErrnoOf(Internal("x")), 0); }

TEST(StatusTest, WhatWasCancelledIsNotAnnotated) {
  EXPECT_EQ(Message(Annotate(Cancelled("it was cancelled"), "pages-1.img")), "it was cancelled");
}

TEST(StatusTest, AnnotatingOkStaysOk) { EXPECT_TRUE(Annotate(OkStatus(), "x").ok()); }

}  // namespace
}  // namespace stasis
