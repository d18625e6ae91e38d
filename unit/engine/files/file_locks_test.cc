#include "engine/files/file_locks.h"

#include <sys/file.h>

#include "unit/engine/files/local_context.h"
#include "unit/engine/files/scratch_directory.h"

namespace stasis::engine {
namespace {

using ::stasis::testing::IsOk;
using ::stasis::testing::StatusIs;

class FileLocksTest : public ::testing::Test {
 protected:
  UniqueFd Open() const { return Fd(::open((scratch_ / "file").c_str(), O_CREAT | O_RDWR, 0600)); }
  static image::FileLockEntry Lock(short type) {
    image::FileLockEntry lock;
    lock.set_flag(kLockOpenFile);
    lock.set_type(static_cast<std::uint32_t>(type));
    lock.set_start(0);
    lock.set_len(0);
    return lock;
  }
  ScratchDirectory scratch_;
};

TEST_F(FileLocksTest, AnExclusiveLockKeepsOthersOut) {
  const UniqueFd one = Open(), other = Open();
  ASSERT_THAT(TakeOpenFileLock(one.get(), Lock(F_WRLCK)), IsOk());
  EXPECT_THAT(TakeOpenFileLock(other.get(), Lock(F_RDLCK)),
              StatusIs(StatusCode::kFailedPrecondition));
}

TEST_F(FileLocksTest, SharedLocksGoTogether) {
  const UniqueFd one = Open(), other = Open();
  ASSERT_THAT(TakeOpenFileLock(one.get(), Lock(F_RDLCK)), IsOk());
  EXPECT_THAT(TakeOpenFileLock(other.get(), Lock(F_RDLCK)), IsOk());
}

}  // namespace
}  // namespace stasis::engine
