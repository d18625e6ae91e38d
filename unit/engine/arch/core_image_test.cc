#include <sys/ptrace.h>

#include <cstring>

#include "engine/arch/arch.h"
#include "engine/tracee/tracee.h"
#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::Child;
using ::stasis::testing::IsOk;
using ::stasis::testing::Sleep;
using ::stasis::testing::StatusIs;
using std::chrono::seconds;
using std::chrono::steady_clock;

class CoreImageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ::stasis::testing::WaitForState(child_.pid(), 'S');
    auto tracee = Tracee::Seize(child_.pid(), 0);
    ASSERT_THAT(tracee, IsOk());
    tracee_ = *std::move(tracee);
    ASSERT_THAT(tracee_.Interrupt(), IsOk());
    ASSERT_THAT(WaitForStop(child_.pid(), steady_clock::now() + seconds(10)), IsOk());
    auto registers = arch::Read(child_.pid());
    ASSERT_THAT(registers, IsOk());
    registers_ = *registers;
    ASSERT_THAT(arch::CheckForImage(registers_), IsOk());
    arch::ToImage(registers_, core_);
  }

  Child child_{Sleep};
  Tracee tracee_;
  arch::Registers registers_;
  image::CoreEntry core_;
};

TEST_F(CoreImageTest, TheWholeExtendedStateComesBack) {
  auto back = arch::FromImage(core_, registers_);
  ASSERT_THAT(back, IsOk());
  ASSERT_THAT(arch::Write(child_.pid(), *back), IsOk());
  auto again = arch::Read(child_.pid());
  ASSERT_THAT(again, IsOk());
  EXPECT_EQ(again->extended.Unpack(), registers_.extended.Unpack());
}

TEST_F(CoreImageTest, WhatIsTakenOutOfAnImageCanBePutBack) {
  const std::string whole = core_.SerializePartialAsString();
  const PackedBytes extended = arch::TakeExtended(core_);
  EXPECT_FALSE(core_.thread_info().has_fpregs());
  arch::PutExtended(extended, core_);
  EXPECT_EQ(core_.SerializePartialAsString(), whole);
}

TEST_F(CoreImageTest, ASleepingCallIsIssuedAgain) {
  // pause(2) was interrupted: -ERESTARTNOHAND, two bytes behind the system call instruction.
  EXPECT_EQ(core_.thread_info().gpregs().ax(), registers_.general.orig_rax);
  EXPECT_EQ(core_.thread_info().gpregs().ip(), registers_.general.rip - 2);
}

TEST_F(CoreImageTest, FeaturesThatTheProcessorLacksAreRefused) {
  core_.mutable_thread_info()->mutable_fpregs()->mutable_xsave()->set_xstate_bv(1ull << 62);
  EXPECT_THAT(arch::FromImage(core_, registers_), StatusIs(StatusCode::kFailedPrecondition));
}

TEST_F(CoreImageTest, TooManyWordsAreRefused) {
  for (int i = 0; i < 1000; ++i) core_.mutable_thread_info()->mutable_fpregs()->add_xmm_space(1);
  EXPECT_THAT(arch::FromImage(core_, registers_), StatusIs(StatusCode::kInvalidArgument));
}

TEST_F(CoreImageTest, AnotherArchitectureIsRefused) {
  core_.set_mtype(image::MARCH_AARCH64);
  EXPECT_THAT(arch::FromImage(core_, registers_), StatusIs(StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace stasis::engine
