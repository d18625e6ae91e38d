#include <poll.h>
#include <sys/stat.h>

#include "unit/engine/files/local_context.h"
#include "unit/engine/files/scratch_directory.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

TEST(FifoTest, BothEndsAndTheContentComeBack) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const UniqueFd reader = Fd(::open(path.c_str(), O_RDONLY | O_NONBLOCK));
  const UniqueFd writer = Fd(::open(path.c_str(), O_WRONLY));
  ASSERT_THAT(WriteAll(writer.get(), "waits"), IsOk());
  LocalDumpContext dump;
  const std::uint32_t reader_id = dump.Add(reader.get());
  const std::uint32_t writer_id = dump.Add(writer.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  ASSERT_EQ(ReadSome(reader.get()), "waits");  // the original must not hold what is restored

  LocalRestoreContext restore(dump);
  const Result<UniqueFd> new_writer = restore.Restore(writer_id);
  const Result<UniqueFd> new_reader = restore.Restore(reader_id);
  ASSERT_THAT(new_writer, IsOk());
  ASSERT_THAT(new_reader, IsOk());
  restore.Finish();
  EXPECT_EQ(ReadSome(new_reader->get()), "waits");
  EXPECT_EQ(Describe(new_reader->get(), 1).flags, Describe(reader.get(), 1).flags);
  EXPECT_EQ(Describe(new_writer->get(), 1).flags, Describe(writer.get(), 1).flags);
}

TEST(FifoTest, AReaderThatNeverHadAWriterSeesNoHangup) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const UniqueFd reader = Fd(::open(path.c_str(), O_RDONLY | O_NONBLOCK));
  const RoundTrip trip(reader.get());
  ASSERT_THAT(trip.status, IsOk());
  pollfd state = {.fd = trip.restored.get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&state, 1, 0), 0);
}

TEST(FifoTest, RefusesAPathThatIsNoFifoAnyMore) {
  const ScratchDirectory scratch;
  const std::string path = scratch / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const UniqueFd fd = Fd(::open(path.c_str(), O_RDWR));
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const UniqueFd file = Fd(::open(path.c_str(), O_RDWR | O_CREAT, 0600));
  LocalRestoreContext restore(dump);
  EXPECT_THAT(restore.Restore(id), StatusIs(StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace stasis::engine
