#include "cri/restore/credentials.h"

#include <gtest/gtest.h>

namespace stasis::cri {
namespace {

runtime::v1::PullImageRequest PullBy(const std::string& pod, const std::string& image) {
  runtime::v1::PullImageRequest request;
  request.mutable_image()->set_image(image);
  request.mutable_auth()->set_username("user of " + pod);
  request.mutable_sandbox_config()->mutable_metadata()->set_uid(pod);
  return request;
}

TEST(CredentialsTest, ServeOtherImagesOfTheSameRegistry) {
  Credentials credentials;
  credentials.Remember(PullBy("p", "reg.test:5000/team/checkpoint:1"));
  ASSERT_TRUE(credentials.For("p", "reg.test:5000/team/app@sha256:1").has_value());
  EXPECT_EQ(credentials.For("p", "reg.test:5000/x")->username(), "user of p");
}

TEST(CredentialsTest, GoToNoOtherRegistryAndNoOtherPod) {
  Credentials credentials;
  credentials.Remember(PullBy("p", "reg.test/checkpoint:1"));
  EXPECT_FALSE(credentials.For("p", "evil.test/app:1").has_value());
  EXPECT_FALSE(credentials.For("p", "library/app:1").has_value());
  EXPECT_FALSE(credentials.For("q", "reg.test/app:1").has_value());
}

TEST(CredentialsTest, TheLatestCount) {
  Credentials credentials;
  credentials.Remember(PullBy("p", "reg.test/a"));
  runtime::v1::PullImageRequest later = PullBy("p", "reg.test/b");
  later.mutable_auth()->set_username("new");
  credentials.Remember(later);
  EXPECT_EQ(credentials.For("p", "reg.test/c")->username(), "new");
}

TEST(CredentialsTest, ARegistryIsWhatLooksLikeAHost) {
  EXPECT_EQ(RegistryOf("redis"), "docker.io");
  EXPECT_EQ(RegistryOf("library/redis:7"), "docker.io");
  EXPECT_EQ(RegistryOf("localhost/redis"), "localhost");
  EXPECT_EQ(RegistryOf("reg.test/redis"), "reg.test");
  EXPECT_EQ(RegistryOf("[::1]:5000/redis"), "[::1]:5000");
}

}  // namespace
}  // namespace stasis::cri
