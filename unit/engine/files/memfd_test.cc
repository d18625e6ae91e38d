#include "engine/files/memfd.h"

#include <sys/mman.h>

#include "unit/engine/files/local_context.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::testing::ElementsAre;

TEST(MemfdTest, OpenFilesOfOneMemfdShareItAgain) {
  const UniqueFd fd = Fd(::memfd_create("name", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(fd.get(), 10000), 0);
  ASSERT_EQ(::fchmod(fd.get(), 0640), 0);
  ASSERT_EQ(::lseek(fd.get(), 123, SEEK_SET), 123);
  const UniqueFd reader =
      Fd(::open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), O_RDONLY | O_CLOEXEC));
  LocalDumpContext dump;
  const std::uint32_t first = dump.Add(fd.get()), second = dump.Add(reader.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  const OpenFile before = Describe(fd.get(), 1);
  EXPECT_THAT(dump.memory_files, ElementsAre(before.st.st_ino));
  LocalRestoreContext restore(dump);
  const Result<UniqueFd> one = restore.Restore(first), two = restore.Restore(second);
  ASSERT_THAT(one, IsOk());
  ASSERT_THAT(two, IsOk());
  const OpenFile again = Describe(one->get(), 1), other = Describe(two->get(), 2);
  EXPECT_EQ(again.link, "/memfd:name (deleted)");
  EXPECT_EQ(again.st.st_size, 10000);
  EXPECT_EQ(again.st.st_mode, before.st.st_mode);
  EXPECT_EQ(again.pos, 123u);
  EXPECT_EQ(again.flags, before.flags);
  EXPECT_EQ(other.st.st_ino, again.st.st_ino);
  EXPECT_EQ(other.flags & O_ACCMODE, std::uint32_t{O_RDONLY});
  EXPECT_EQ(::fcntl(one->get(), F_GET_SEALS), F_SEAL_SEAL) << "none was allowed";
}

TEST(MemfdTest, SealsAreInTheImageAndComeLast) {
  const UniqueFd fd = Fd(::memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW), 0);
  const RoundTrip trip(fd.get());
  ASSERT_THAT(trip.status, IsOk());
  EXPECT_EQ(::fcntl(trip.restored.get(), F_GET_SEALS), 0);
  LocalDumpContext dump;
  dump.Add(fd.get());
  ASSERT_THAT(dump.DumpAll(), IsOk());
  LocalRestoreContext restore(dump);
  const auto records = restore.Records("memfd");
  ASSERT_THAT(records, IsOk());
  const auto inode = FindMemfd(*records, dump.entries[0].memfd().inode_id());
  ASSERT_THAT(inode, IsOk());
  EXPECT_EQ(inode->name(), "sealed");
  ASSERT_THAT(SealMemfd(trip.restored.get(), inode->seals()), IsOk());
  EXPECT_EQ(::fcntl(trip.restored.get(), F_GET_SEALS), F_SEAL_WRITE | F_SEAL_GROW);
}

}  // namespace
}  // namespace stasis::engine
