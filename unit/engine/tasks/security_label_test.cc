#include "engine/tasks/security_label.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace stasis::engine {
namespace {

using ::testing::HasSubstr;

TEST(SecurityLabelTest, AnAppArmorProfileIsNamedWithoutItsMode) {
  const auto parse = [](std::string_view text) { return ParseLabel(image::LSM_APPARMOR, text); };
  EXPECT_EQ(parse("cri-containerd.apparmor.d (enforce)\n"), "cri-containerd.apparmor.d");
  EXPECT_EQ(parse("/usr/sbin/named (complain)\n"), "/usr/sbin/named");
  EXPECT_EQ(parse("unconfined\n"), "unconfined");
  EXPECT_EQ(parse("a (b)//&:host:c d (mixed)\n"), "a (b)//&:host:c d");
}

TEST(SecurityLabelTest, ASelinuxContextIsTakenWhole) {
  using namespace std::string_view_literals;
  EXPECT_EQ(ParseLabel(image::LSM_SELINUX, "system_u:system_r:container_t:s0:c1,c2\0"sv),
            "system_u:system_r:container_t:s0:c1,c2");
}

CheckpointImages OneProcess(image::Lsmtype module, std::vector<std::string> profiles) {
  CheckpointImages images;
  images.inventory.set_lsmtype(module);
  images.processes.resize(1);
  for (std::string& profile : profiles) {
    ThreadImage& thread = images.processes.front().threads.emplace_back();
    thread.tid = static_cast<pid_t>(images.processes.front().threads.size());
    if (profile.empty()) continue;
    thread.core.mutable_thread_core()->mutable_creds()->set_lsm_profile(std::move(profile));
  }
  return images;
}

// A module that is certainly not this machine's.
image::Lsmtype OtherModule() {
  return ActiveModule() == image::LSM_APPARMOR ? image::LSM_SELINUX : image::LSM_APPARMOR;
}

TEST(SecurityLabelTest, OnAHostWithoutTheModuleALabelIsNotLostSilently) {
  const auto labels = Labels::Create(OneProcess(OtherModule(), {"shut"}), ::getpid(), true);
  EXPECT_EQ(labels.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Message(labels.status())), HasSubstr("tid 1 had the"));
}

TEST(SecurityLabelTest, AContainerHasTheLabelOfItsRuntime) {
  const auto images = OneProcess(OtherModule(), {"shut", "shut"});
  const auto labels = Labels::Create(images, ::getpid(), false);
  ASSERT_TRUE(labels.ok()) << labels.status();
  EXPECT_FALSE(labels->IsToChange(images.processes.front().threads.back()));
}

TEST(SecurityLabelTest, InAContainerAThreadWithALabelOfItsOwnIsRefused) {
  const auto labels = Labels::Create(OneProcess(OtherModule(), {"shut", "hat"}), ::getpid(), false);
  EXPECT_THAT(std::string(Message(labels.status())), HasSubstr("tid 2 had the"));
}

TEST(SecurityLabelTest, WhoHadNoLabelNeedsNoModule) {
  EXPECT_TRUE(Labels::Create(OneProcess(OtherModule(), {""}), ::getpid(), true).ok());
}

}  // namespace
}  // namespace stasis::engine
