// CreateContainer through the shim: what the runtime is asked for.
#include "cri/restore/placeholder.h"
#include "cri/restore/records.h"
#include "unit/cri/shim_fixture.h"

namespace stasis::cri {
namespace {

namespace v1 = runtime::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CreateContainerTest : public testing::ShimTest {
 protected:
  const v1::ContainerConfig& Asked(const std::string& id) {
    return runtime_.containers.at(id).request.config();
  }
  void MarkAs(const std::string& id, RestorePhase phase) {
    shim_.reset();
    auto records = Records::Open(directory_ / "state/containers");
    ASSERT_THAT(records, testing::IsOk());
    RestoredContainer record = (*records)->Find(id).value();
    record.phase = phase;
    ASSERT_THAT((*records)->Put(record), testing::IsOk());
    records->reset();
    StartShim();
  }
};

// A field that our schema does not have (ContainerConfig.linux is 15), and a value that is no UTF-8.
void AddWhatWeDoNotKnow(v1::ContainerConfig& config) {
  config.GetReflection()->MutableUnknownFields(&config)->AddLengthDelimited(15, "security");
  v1::KeyValue& variable = *config.add_envs();
  variable.set_key("BYTES");
  variable.set_value("\xff\xfe");
}

TEST_F(CreateContainerTest, AnOrdinaryImagePassesUnchanged) {
  v1::CreateContainerRequest request = RequestFor("sha256:base");
  AddWhatWeDoNotKnow(*request.mutable_config());
  const std::string id = Create(request);
  ASSERT_NE(id, "") << status_.error_message();
  EXPECT_EQ(runtime_.containers[id].request.SerializeAsString(), request.SerializeAsString());
}

TEST_F(CreateContainerTest, AnImageThatIsNotThereIsLeftToTheRuntime) {
  EXPECT_NE(Create(RequestFor("reg.test/unknown:1")), "");
  EXPECT_TRUE(runtime_.views.empty());
}

TEST_F(CreateContainerTest, ACheckpointBecomesItsBaseImageWithThePlaceholder) {
  const std::string id = Create(RequestFor("sha256:check"));
  ASSERT_NE(id, "") << status_.error_message();
  const v1::ContainerConfig& asked = Asked(id);
  EXPECT_EQ(asked.image().image(), "sha256:base");
  EXPECT_THAT(asked.command(), ElementsAre(kPlaceholderPath));
  EXPECT_THAT(asked.args(), ElementsAre("hold"));
  ASSERT_EQ(asked.mounts_size(), 1);
  EXPECT_EQ(asked.mounts(0).host_path(), "/bin/true");
  EXPECT_EQ(asked.mounts(0).container_path(), kPlaceholderPath);
  EXPECT_TRUE(asked.mounts(0).readonly());
}

TEST_F(CreateContainerTest, AllElseOfTheRequestSurvivesTheRewriting) {
  v1::CreateContainerRequest request = RequestFor("sha256:check");
  AddWhatWeDoNotKnow(*request.mutable_config());
  const std::string id = Create(request);
  ASSERT_NE(id, "") << status_.error_message();
  v1::ContainerConfig expected = request.config();
  v1::ContainerConfig asked = Asked(id);
  for (v1::ContainerConfig* config : {&expected, &asked}) {
    config->clear_image();
    config->clear_command();
    config->clear_args();
    config->clear_mounts();
  }
  EXPECT_EQ(asked.SerializeAsString(), expected.SerializeAsString());
}

TEST_F(CreateContainerTest, AMarkOnlyOnThePlatformsManifestCounts) {
  runtime_.blobs["sha256:index"] =
      R"({"manifests":[{"digest":"sha256:elsewhere"},{"digest":"sha256:manifest"}]})";
  AddImage("reg.test/indexed:1", "sha256:indexed", "sha256:index");
  const std::string id = Create(RequestFor("sha256:indexed"));
  ASSERT_NE(id, "") << status_.error_message();
  EXPECT_EQ(Asked(id).image().image(), "sha256:base");
}

TEST_F(CreateContainerTest, AMarkInTheLabelsOfTheConfigurationCounts) {
  runtime_.images["reg.test/labelled:1"] = {
      .id = "sha256:labelled",
      .info = R"({"chainID":"sha256:chain","imageSpec":{"config":{"Labels":
              {"io.kubernetes.cri-o.annotations.checkpoint.name":"app"}}}})",
      .manifest = ""};
  const std::string id = Create(RequestFor("reg.test/labelled:1"));
  ASSERT_NE(id, "") << status_.error_message();
  EXPECT_EQ(Asked(id).image().image(), "sha256:base");
}

TEST_F(CreateContainerTest, AMissingBaseImageIsPulledWithThePodsCredentials) {
  runtime_.images.erase("reg.test/app:1");
  runtime_.pullable["reg.test/app:1"] = "sha256:pulled";
  v1::PullImageRequest pull;
  pull.mutable_image()->set_image("reg.test/checkpoint:1");
  pull.mutable_sandbox_config()->mutable_metadata()->set_uid("pod-uid");
  pull.mutable_auth()->set_username("user");
  grpc::ClientContext context;
  v1::PullImageResponse response;
  (void)images_->PullImage(&context, pull, &response);  // the checkpoint's; what counts is who asks
  const std::string id = Create(RequestFor("sha256:check"));
  ASSERT_NE(id, "") << status_.error_message();
  EXPECT_EQ(Asked(id).image().image(), "sha256:pulled");
  EXPECT_EQ(runtime_.pulls.back().auth().username(), "user");
}

TEST_F(CreateContainerTest, ABaseImageThatCannotBeHadIsNamedInTheError) {
  runtime_.images.erase("reg.test/app:1");
  EXPECT_EQ(Create(RequestFor("sha256:check")), "");
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status_.error_message(), HasSubstr("reg.test/app"));
  EXPECT_THAT(status_.error_message(), HasSubstr("pull access denied"));
  EXPECT_TRUE(runtime_.views.empty() && runtime_.held.empty());
}

TEST_F(CreateContainerTest, AnImageThatIsNoWholeCheckpointIsRefused) {
  std::filesystem::remove(directory_ / "view/checkpoint/inventory.img");
  EXPECT_EQ(Create(RequestFor("sha256:check")), "");
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status_.error_message(), HasSubstr("inventory.img"));
  EXPECT_TRUE(runtime_.views.empty() && runtime_.held.empty());
}

TEST_F(CreateContainerTest, ThePodsWordOnClocksIsRemembered) {
  for (const char* const word : {"true", "yes"}) {
    v1::CreateContainerRequest request = RequestFor("sha256:check");
    request.mutable_config()->mutable_metadata()->set_name(word);
    auto& annotations = *request.mutable_sandbox_config()->mutable_annotations();
    annotations["stasis.dev/clocks-may-go-back"] = word;
    const std::string id = Create(request);
    ASSERT_NE(id, "") << status_.error_message();
    EXPECT_EQ(Records::Open(directory_ / "state/containers").value()->Find(id)->clocks_may_go_back,
              word == std::string("true"));
  }
}

v1::CreateContainerRequest OnRestart(v1::CreateContainerRequest request, const char* policy) {
  (*request.mutable_sandbox_config()->mutable_annotations())["stasis.dev/on-restart"] = policy;
  return request;
}

TEST_F(CreateContainerTest, AfterARestoredOneItBeginsAnewWhereThePodSaysSo) {
  const v1::CreateContainerRequest fresh = OnRestart(RequestFor("sha256:check"), "fresh");
  const std::string first = Create(fresh);
  EXPECT_THAT(Asked(first).command(), ElementsAre(kPlaceholderPath));
  MarkAs(first, RestorePhase::kRestored);
  for (std::uint32_t attempt : {1U, 2U}) {
    v1::CreateContainerRequest again = fresh;
    again.mutable_config()->mutable_metadata()->set_attempt(attempt);
    again.set_pod_sandbox_id("sandbox-" + std::to_string(attempt));  // as after a reboot
    const std::string id = Create(again);
    ASSERT_NE(id, "") << status_.error_message();
    EXPECT_EQ(Asked(id).image().image(), "sha256:base");
    EXPECT_THAT(Asked(id).command(), ElementsAre("the-program"));
    EXPECT_EQ(Asked(id).mounts_size(), 0);
    EXPECT_EQ(StatusOf(id).status().image_ref(), "reg.test/checkpoint:1@sha256:repo");
    EXPECT_TRUE(Start(id).ok());
    EXPECT_EQ(Create(again), id);
  }
  EXPECT_EQ(runtime_.views.size(), 1U);  // that of the first, which was never started
}

TEST_F(CreateContainerTest, OneThatWasNeverRestoredDoesNotBeginAnew) {
  const v1::CreateContainerRequest fresh = OnRestart(RequestFor("sha256:check"), "fresh");
  MarkAs(Create(fresh), RestorePhase::kFailed);
  v1::CreateContainerRequest again = fresh;
  again.mutable_config()->mutable_metadata()->set_attempt(1);
  EXPECT_THAT(Asked(Create(again)).command(), ElementsAre(kPlaceholderPath));
}

TEST_F(CreateContainerTest, AnUnknownPolicyIsRefusedWithTheKnownOnes) {
  EXPECT_EQ(Create(OnRestart(RequestFor("sha256:check"), "never")), "");
  EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status_.error_message(), HasSubstr("\"restore\" or \"fresh\""));
}

TEST_F(CreateContainerTest, ARepeatedRequestGetsTheFirstOnesAnswer) {
  const std::string first = Create(RequestFor("sha256:check"));
  StartShim();
  EXPECT_EQ(Create(RequestFor("sha256:check")), first);
  EXPECT_EQ(runtime_.containers.size(), 1U);
}

}  // namespace
}  // namespace stasis::cri
