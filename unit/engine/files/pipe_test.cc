#include <poll.h>
#include <sys/ioctl.h>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;
using ::testing::HasSubstr;

struct Pipe {
  UniqueFd reader, writer;
};

Pipe MakePipe(int flags = 0) {
  int ends[2] = {-1, -1};
  EXPECT_EQ(::pipe2(ends, flags | O_CLOEXEC), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

TEST(PipeTest, KeepsItsContentOnceAndItsSize) {
  const Pipe pipe = MakePipe(O_NONBLOCK);
  ASSERT_EQ(::fcntl(pipe.writer.get(), F_SETPIPE_SZ, 1 << 17), 1 << 17);
  ASSERT_THAT(WriteAll(pipe.writer.get(), "waits"), IsOk());
  LocalDumpContext dump;
  const std::uint32_t reader = dump.Add(pipe.reader.get());
  const std::uint32_t writer = dump.Add(pipe.writer.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> new_writer = restore.Restore(writer);
  const Result<UniqueFd> new_reader = restore.Restore(reader);
  ASSERT_THAT(new_writer, IsOk());
  ASSERT_THAT(new_reader, IsOk());
  restore.Finish();

  EXPECT_EQ(::fcntl(new_reader->get(), F_GETPIPE_SZ), 1 << 17);
  ASSERT_THAT(WriteAll(new_writer->get(), " here"), IsOk());
  EXPECT_EQ(ReadSome(new_reader->get()), "waits here");
  EXPECT_EQ(Describe(new_reader->get(), 1).flags, std::uint32_t{O_NONBLOCK});
  EXPECT_EQ(ReadSome(pipe.reader.get()), "waits") << "the dump took it";
}

TEST(PipeTest, SeparateOpenFilesOfOneEndHaveTheirOwnFlags) {
  const Pipe pipe = MakePipe();
  const std::string link = "/proc/self/fd/" + std::to_string(pipe.reader.get());
  const UniqueFd second = Fd(::open(link.c_str(), O_RDONLY | O_NONBLOCK));
  LocalDumpContext dump;
  dump.Add(pipe.writer.get());
  const std::uint32_t first_id = dump.Add(pipe.reader.get());
  const std::uint32_t second_id = dump.Add(second.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> new_first = restore.Restore(first_id);
  const Result<UniqueFd> new_second = restore.Restore(second_id);
  ASSERT_THAT(new_first, IsOk());
  ASSERT_THAT(new_second, IsOk());
  EXPECT_EQ(Describe(new_first->get(), 1).flags, Describe(pipe.reader.get(), 1).flags);
  EXPECT_EQ(Describe(new_second->get(), 1).flags, Describe(second.get(), 1).flags);
}

// A tree with as many pipes as our limit of open files allows must not need twice as many.
TEST(PipeTest, HoldsNoSecondDescriptorOfAnEnd) {
  const Pipe pipe = MakePipe();
  LocalDumpContext dump;
  const std::uint32_t reader = dump.Add(pipe.reader.get());
  const std::uint32_t writer = dump.Add(pipe.writer.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> new_reader = restore.Restore(reader);
  const Result<UniqueFd> new_writer = restore.Restore(writer);
  ASSERT_THAT(new_writer, IsOk());
  for (const auto& [key, fd] : restore.Kept()) EXPECT_FALSE(fd) << key;
}

TEST(PipeTest, AFullPipeOfSmallPiecesFits) {
  const Pipe pipe = MakePipe(O_NONBLOCK);
  std::string sent;
  for (char byte = 'a'; ::write(pipe.writer.get(), &byte, 1) == 1;
       byte = static_cast<char>(byte == 'z' ? 'a' : byte + 1)) {
    sent += byte;
  }
  LocalDumpContext dump;
  const std::uint32_t reader = dump.Add(pipe.reader.get());
  dump.Add(pipe.writer.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> restored = restore.Restore(reader);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(ReadSome(restored->get()), sent);
}

TEST(PipeTest, AReaderWithoutWritersReadsTheRestAndThenTheEnd) {
  Pipe pipe = MakePipe();
  ASSERT_THAT(WriteAll(pipe.writer.get(), "last words"), IsOk());
  pipe.writer.Reset();
  const RoundTrip trip(pipe.reader.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(ReadSome(trip.restored.get()), "last words");
  EXPECT_EQ(ReadSome(trip.restored.get()), "");
}

TEST(PipeTest, AWriterWithoutReadersFails) {
  Pipe pipe = MakePipe();
  pipe.reader.Reset();
  const RoundTrip trip(pipe.writer.get());
  ASSERT_THAT(trip.status, IsOk());
  pollfd state = {.fd = trip.restored.get(), .events = 0, .revents = 0};
  ASSERT_EQ(::poll(&state, 1, 0), 1);
  EXPECT_NE(state.revents & POLLERR, 0);
}

TEST(PipeTest, RefusesOneWhoseOtherEndIsOutsideTheTree) {
  const Pipe pipe = MakePipe();
  EXPECT_THAT(RoundTrip(pipe.writer.get()).status,
              StatusIs(StatusCode::kUnimplemented, HasSubstr("pipe:[")));
}

TEST(PipeTest, StandardOutputBecomesTheNewOne) {
  const Pipe pipe = MakePipe();
  const Pipe other = MakePipe();
  LocalDumpContext dump;
  const std::uint32_t id = dump.Add(pipe.writer.get());
  dump.external = Describe(pipe.writer.get(), 0).link;
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  restore.external = other.writer.get();
  const Result<UniqueFd> restored = restore.Restore(id);
  ASSERT_THAT(restored, IsOk());
  ASSERT_THAT(WriteAll(restored->get(), "to the new log"), IsOk());
  EXPECT_EQ(ReadSome(other.reader.get()), "to the new log");
}

TEST(PipeTest, PacketsKeepTheirBorders) {
  const Pipe pipe = MakePipe(O_DIRECT);
  for (const char* const packet : {"one", "", "three"}) {
    ASSERT_THAT(WriteAll(pipe.writer.get(), packet), IsOk());
  }
  LocalDumpContext dump;
  const std::uint32_t reader_id = dump.Add(pipe.reader.get());
  const std::uint32_t writer_id = dump.Add(pipe.writer.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> reader = restore.Restore(reader_id), writer = restore.Restore(writer_id);
  ASSERT_THAT(reader, IsOk());
  ASSERT_THAT(writer, IsOk());
  EXPECT_EQ(Describe(writer->get(), 1).flags, Describe(pipe.writer.get(), 1).flags);
  ASSERT_THAT(WriteAll(writer->get(), "four"), IsOk());
  for (const char* const packet : {"one", "three", "four"}) {
    EXPECT_EQ(ReadSome(reader->get()), packet);
  }
}

}  // namespace
}  // namespace stasis::engine
