#include "engine/tasks/restore_clocks.h"

#include "engine/image/schema/namespaces.pb.h"
#include "engine/tasks/clocks.h"
#include "unit/engine/memory/restore_fixture.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using namespace std::chrono_literals;

constexpr uid_t kNobody = 65534;

class RestoreClocksTest : public ::testing::Test {
 protected:
  // Images of a tree that had read these clocks.
  void Save(std::chrono::seconds monotonic, std::chrono::seconds boottime,
            const std::string& file_name = "timens-0.img") {
    image::TimensEntry entry;
    entry.mutable_monotonic()->set_tv_sec(static_cast<std::uint64_t>(monotonic.count()));
    entry.mutable_monotonic()->set_tv_nsec(0);
    entry.mutable_boottime()->set_tv_sec(static_cast<std::uint64_t>(boottime.count()));
    entry.mutable_boottime()->set_tv_nsec(0);
    ImageFileBuilder file("timens");
    ASSERT_THAT(file.Add(entry), IsOk());
    source_.files[file_name] = file.bytes();
  }
  Status Restore(testing::FreshProgram& program, bool may_go_back = false) {
    return RestoreClocks(program.process(), source_, STASIS_PLACEHOLDER, may_go_back, notes_);
  }

  testing::MapSource source_;
  std::vector<std::string> notes_;
};

TEST_F(RestoreClocksTest, ClocksThatWouldGoBackGetATimeNamespace) {
  testing::FreshProgram program;
  const Clocks before = *ReadClocks(program.process_fd());
  Save(std::chrono::ceil<std::chrono::seconds>(before.monotonic) + 1000s, 1s);
  ASSERT_THAT(Restore(program), IsOk());
  const Clocks after = *ReadClocks(program.process_fd());
  EXPECT_GE(after.monotonic, before.monotonic + 1000s);
  EXPECT_LT(after.boottime, before.boottime + 100s);  // was not behind
  EXPECT_THAT(notes_, IsEmpty());
}

// The file is named by a time namespace that the tree had to itself.
TEST_F(RestoreClocksTest, SoDoThoseOfATreeThatHadOne) {
  testing::FreshProgram program;
  const Clocks before = *ReadClocks(program.process_fd());
  Save(std::chrono::ceil<std::chrono::seconds>(before.monotonic) + 1000s, 1s, "timens-9.img");
  ASSERT_THAT(Restore(program), IsOk());
  EXPECT_GE(ReadClocks(program.process_fd())->monotonic, before.monotonic + 1000s);
}

TEST_F(RestoreClocksTest, ClocksThatAreAheadAreLeftAlone) {
  testing::FreshProgram program;
  Save(1s, 1s);
  ASSERT_THAT(Restore(program), IsOk());
  EXPECT_EQ(ClockOffsets(program.process_fd())->monotonic, 0ns);
}

TEST_F(RestoreClocksTest, WithoutTheRightItIsRefusedUnlessAllowed) {
  testing::FreshProgram program(kNobody);
  Save(100'000'000s, 1s);
  EXPECT_THAT(Restore(program), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("s behind")));
  EXPECT_THAT(Restore(program, true), IsOk());
  EXPECT_THAT(notes_, SizeIs(1));
}

TEST_F(RestoreClocksTest, ImpossibleTimesAreRefused) {
  testing::FreshProgram program;
  Save(std::chrono::seconds(std::int64_t{1} << 60), 1s);
  EXPECT_THAT(Restore(program),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("an impossible time")));
}

}  // namespace
}  // namespace stasis::engine
