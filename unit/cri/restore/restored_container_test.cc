// A container that was created from a checkpoint, until it is removed.
#include <thread>

#include "cri/client.h"
#include "cri/restore/placeholder.h"
#include "cri/restore/records.h"
#include "unit/cri/shim_fixture.h"

namespace stasis::cri {
namespace {

namespace v1 = runtime::v1;
using ::testing::HasSubstr;

class RestoredContainerTest : public testing::ShimTest {
 protected:
  void SetUp() override {
    ShimTest::SetUp();
    v1::CreateContainerRequest request = RequestFor("sha256:check");
    request.mutable_config()->mutable_image()->set_user_specified_image("reg.test/checkpoint:1");
    id_ = Create(request);
    ASSERT_NE(id_, "") << status_.error_message();
  }

  void MarkAsRestoring() { MarkAs(RestorePhase::kRestoring); }
  void MarkAs(RestorePhase phase) {
    shim_.reset();
    auto records = Records::Open(directory_ / "state/containers");
    ASSERT_THAT(records, testing::IsOk());
    RestoredContainer record = (*records)->Find(id_).value();
    record.phase = phase;
    ASSERT_THAT((*records)->Put(record), testing::IsOk());
  }

  std::string id_;
};

TEST_F(RestoredContainerTest, ItsStatusShowsTheImageThatWasAskedFor) {
  const v1::ContainerStatus status = StatusOf(id_).status();
  EXPECT_EQ(status.image().image(), "reg.test/checkpoint:1");
  EXPECT_EQ(status.image_ref(), "reg.test/checkpoint:1@sha256:repo");
  EXPECT_EQ(status.mounts_size(), 0);
}

TEST_F(RestoredContainerTest, TheListShowsTheImageThatWasAskedForAndOthersAsTheyAre) {
  const std::string other = Create(RequestFor("sha256:base"));
  grpc::ClientContext context;
  v1::ListContainersResponse response;
  ASSERT_TRUE(containers_->ListContainers(&context, {}, &response).ok());
  for (const v1::Container& container : response.containers()) {
    EXPECT_EQ(container.image().image(),
              container.id() == other ? "sha256:base" : "reg.test/checkpoint:1");
  }
}

TEST_F(RestoredContainerTest, ARestoreThatFailsEndsTheContainerAndSaysWhy) {
  const grpc::Status started = Start(id_);
  EXPECT_FALSE(started.ok());
  EXPECT_THAT(started.error_message(), HasSubstr("reg.test/checkpoint:1"));
  EXPECT_EQ(runtime_.containers[id_].stops, 1);
  const v1::ContainerStatus status = StatusOf(id_).status();
  EXPECT_EQ(status.reason(), "RestoreFailed");
  EXPECT_THAT(started.error_message(), HasSubstr(status.message()));
  EXPECT_THAT(Read("app.log"), HasSubstr("stderr F stasis: not restored: "));
  EXPECT_TRUE(runtime_.views.empty() && runtime_.held.empty());
}

TEST_F(RestoredContainerTest, ACheckpointMadeThroughUsNamesTheBaseImage) {
  MarkAs(RestorePhase::kRestored);
  runtime_.containers[id_].state = v1::CONTAINER_RUNNING;
  StartShim();
  const auto facts = DescribeRunningAt("unix://" + directory_ / "shim", id_, {});
  ASSERT_THAT(facts, testing::IsOk());
  EXPECT_EQ(facts->status.image().image(), "sha256:base");
  EXPECT_EQ(facts->status.image_ref(), "base-ref");
  EXPECT_EQ(facts->restore_phase, "restored");
}

TEST_F(RestoredContainerTest, AHalfRestoredOneIsNotCheckpointedByOthersEither) {
  MarkAsRestoring();
  StartShim();
  // Until Recover() is done with it.
  for (int i = 0; i < 1000 && runtime_.containers[id_].stops == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  runtime_.containers[id_].state = v1::CONTAINER_RUNNING;
  EXPECT_THAT(DescribeRunningAt("unix://" + directory_ / "shim", id_, {}),
              testing::StatusIs(StatusCode::kFailedPrecondition, HasSubstr("not restored")));
}

TEST_F(RestoredContainerTest, ItsLogIsNotWrittenThroughALink) {
  Write("view/container.log", "2026-01-01T00:00:00Z stdout F a line of the archive\n");
  std::filesystem::create_directory(directory_ / "elsewhere");
  std::filesystem::create_symlink(directory_ / "elsewhere", directory_ / "logs");
  std::filesystem::create_symlink(directory_ / "elsewhere/file", directory_ / "link.log");
  std::uint32_t attempt = 1;
  for (const char* const log : {"logs/app.log", "link.log"}) {
    v1::CreateContainerRequest request = RequestFor("sha256:check");
    request.mutable_config()->mutable_metadata()->set_attempt(attempt++);
    request.mutable_config()->set_log_path(log);
    (void)Start(Create(request));
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory_ / "elsewhere"));
}

TEST_F(RestoredContainerTest, AFailedOneIsNotStartedAgain) {
  (void)Start(id_);
  const grpc::Status again = Start(id_);
  EXPECT_EQ(again.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(runtime_.containers[id_].state, v1::CONTAINER_EXITED);
}

TEST_F(RestoredContainerTest, TheSavedLogComesBeforeAnythingElse) {
  Write("view/container.log", "2026-01-01T00:00:00Z stdout F before\n");
  (void)Start(id_);
  EXPECT_THAT(Read("app.log"), ::testing::StartsWith("2026-01-01T00:00:00Z stdout F before\n"));
}

TEST_F(RestoredContainerTest, RemovingItGivesTheViewBack) {
  EXPECT_EQ(runtime_.views.size(), 1U);
  grpc::ClientContext context;
  v1::RemoveContainerRequest request;
  request.set_container_id(id_);
  v1::RemoveContainerResponse response;
  ASSERT_TRUE(containers_->RemoveContainer(&context, request, &response).ok());
  EXPECT_TRUE(runtime_.views.empty() && runtime_.held.empty());
  EXPECT_FALSE(std::filesystem::exists(directory_ / ("state/containers/" + id_ + ".json")));
}

TEST_F(RestoredContainerTest, ARestoreThatWasCutShortIsFailedByTheNextStasisd) {
  MarkAsRestoring();
  runtime_.containers[id_].state = v1::CONTAINER_RUNNING;  // the placeholder, holding still
  StartShim();
  EXPECT_EQ(Start(id_).error_code() == grpc::StatusCode::OK, false);
  EXPECT_EQ(runtime_.containers[id_].state, v1::CONTAINER_EXITED);
  EXPECT_THAT(StatusOf(id_).status().message(), HasSubstr("stasisd ended during the restore"));
}

TEST_F(RestoredContainerTest, AContainerThatIsGoneIsForgottenByTheNextStasisd) {
  shim_.reset();
  runtime_.containers.clear();
  StartShim();
  const std::string record = directory_ / ("state/containers/" + id_ + ".json");
  for (int i = 0; i < 2000 && std::filesystem::exists(record); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_FALSE(std::filesystem::exists(record));
}

TEST_F(RestoredContainerTest, AHalfRestoredOneIsNotCheckpointed) {
  MarkAsRestoring();
  runtime_.containers[id_].state = v1::CONTAINER_RUNNING;
  StartShim();
  grpc::ClientContext context;
  v1::CheckpointContainerRequest request;
  request.set_container_id(id_);
  request.set_location(directory_ / "archive.tar");
  v1::CheckpointContainerResponse response;
  EXPECT_EQ(containers_->CheckpointContainer(&context, request, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "archive.tar"));
}

}  // namespace
}  // namespace stasis::cri
