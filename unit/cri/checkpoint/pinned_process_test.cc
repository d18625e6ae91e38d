#include "cri/checkpoint/pinned_process.h"

#include "unit/support/child.h"
#include "unit/support/matchers.h"

namespace stasis::testing {
namespace {

using ::testing::HasSubstr;

cri::ContainerFacts Facts(pid_t pid, const std::string& cgroups_path) {
  cri::ContainerFacts facts;
  facts.pid = pid;
  facts.spec = {{"linux", {{"cgroupsPath", cgroups_path}}}};
  return facts;
}

TEST(PinnedProcessTest, IsNotAnotherOfItsNumber) {
  Child child(Sleep);
  const auto pinned = cri::PinnedProcess::Of(Facts(child.pid(), ""));
  ASSERT_THAT(pinned, IsOk());
  EXPECT_THAT(pinned->StillThere(), IsOk());
  ::kill(child.pid(), SIGKILL);
  (void)child.Wait();  // from here on the number may be another's
  EXPECT_THAT(pinned->StillThere(), StatusIs(StatusCode::kNotFound));
}

TEST(PinnedProcessTest, AProcessOfAnotherCgroupIsRefused) {
  for (const char* const path : {"/kubepods/pod1/0123abcd", "kubepods-pod1.slice:cri:0123abcd"}) {
    EXPECT_THAT(cri::PinnedProcess::Of(Facts(::getpid(), path)),
                StatusIs(StatusCode::kFailedPrecondition, HasSubstr("0123abcd")));
  }
}

TEST(PinnedProcessTest, ThatOfANumberWhichNobodyHasIsGone) {
  Child child([] { return 0; });
  const pid_t pid = child.pid();
  (void)child.Wait();
  EXPECT_THAT(cri::PinnedProcess::Of(Facts(pid, "")), StatusIs(StatusCode::kNotFound));
}

}  // namespace
}  // namespace stasis::testing
