// CheckpointContainer: what is refused before anything is touched.
#include "cri/client.h"
#include "unit/cri/shim_fixture.h"

namespace stasis::cri {
namespace {

using testing::StatusIs;

class CheckpointContainerTest : public testing::ShimTest {
 protected:
  void SetUp() override {
    ShimTest::SetUp();
    id_ = Create(RequestFor("sha256:base"));
    runtime_.containers[id_].state = runtime::v1::CONTAINER_RUNNING;
  }

  Status Checkpoint(const std::string& id, const std::string& location) {
    return CheckpointContainer({.runtime_endpoint = "unix://" + directory_ / "shim",
                                .container_id = id,
                                .location = location});
  }

  std::string id_;
};

TEST_F(CheckpointContainerTest, AnUnknownContainerIsNotFound) {
  EXPECT_THAT(Checkpoint("nobody", directory_ / "a.tar"), StatusIs(StatusCode::kNotFound));
}

TEST_F(CheckpointContainerTest, AStoppedContainerIsRefused) {
  runtime_.containers[id_].state = runtime::v1::CONTAINER_EXITED;
  EXPECT_THAT(Checkpoint(id_, directory_ / "a.tar"), StatusIs(StatusCode::kFailedPrecondition));
}

TEST_F(CheckpointContainerTest, ARelativeLocationIsRefused) {
  EXPECT_THAT(Checkpoint(id_, "a.tar"), StatusIs(StatusCode::kInvalidArgument));
}

TEST_F(CheckpointContainerTest, AMissingFolderIsNotFound) {
  EXPECT_THAT(Checkpoint(id_, directory_ / "missing/a.tar"), StatusIs(StatusCode::kNotFound));
}

TEST_F(CheckpointContainerTest, AFileThatIsThereIsLeftAsItWas) {
  Write("a.tar", "mine");
  EXPECT_THAT(Checkpoint(id_, directory_ / "a.tar"), StatusIs(StatusCode::kAlreadyExists));
  EXPECT_EQ(Read("a.tar"), "mine");
}

TEST_F(CheckpointContainerTest, AProcessThatIsGoneLeavesNoArchive) {
  runtime_.pid = 0x3fffff;  // beyond pid_max
  EXPECT_FALSE(Checkpoint(id_, directory_ / "a.tar").ok());
  EXPECT_FALSE(std::filesystem::exists(directory_ / "a.tar"));
}

TEST(ClientTest, NobodyAnsweringNamesTheSocket) {
  EXPECT_THAT(
      CheckpointContainer(
          {.runtime_endpoint = "unix:///no/such.sock", .container_id = "c", .location = "/a.tar"}),
      StatusIs(StatusCode::kUnavailable, ::testing::HasSubstr("/no/such.sock")));
}

}  // namespace
}  // namespace stasis::cri
