// On the live kernel: a process in a mount namespace of its own, with a read-only root.
#include "cri/restore/container_root.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/base/io.h"
#include "unit/cri/temporary_directory.h"
#include "unit/support/matchers.h"

namespace stasis::cri {
namespace {

using testing::IsOk;

/// A child whose root is `root` read-only, with a tmpfs at /volume.
class Contained {
 public:
  explicit Contained(const std::string& root) {
    int ready[2];
    if (::pipe2(ready, O_CLOEXEC) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      const bool made =
          ::unshare(CLONE_NEWNS) == 0 &&
          ::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
          ::mount(root.c_str(), root.c_str(), nullptr, MS_BIND, nullptr) == 0 &&
          ::mount("tmpfs", (root + "/volume").c_str(), "tmpfs", 0, nullptr) == 0 &&
          ::mount("", root.c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) == 0 &&
          ::chdir(root.c_str()) == 0 && ::syscall(SYS_pivot_root, ".", ".") == 0 &&
          ::umount2(".", MNT_DETACH) == 0;
      const char answer = made ? 'y' : 'n';
      (void)!::write(ready[1], &answer, 1);
      while (true) ::pause();
    }
    ::close(ready[1]);
    char answer = 'n';
    made_ = ::read(ready[0], &answer, 1) == 1 && answer == 'y';
    ::close(ready[0]);
  }
  ~Contained() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  bool made() const { return made_; }

 private:
  pid_t pid_ = -1;
  bool made_ = false;
};

class ContainerRootTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "mount namespaces need root";
    std::filesystem::create_directories(directory_ / "root/volume");
  }
  testing::TemporaryDirectory directory_;
};

TEST_F(ContainerRootTest, IsWritableWhereTheContainerSeesItReadOnly) {
  const Contained contained(directory_ / "root");
  ASSERT_TRUE(contained.made());
  Result<UniqueFd> root = OpenWritableRoot(contained.pid());
  ASSERT_THAT(root, IsOk());
  EXPECT_THAT(OpenAt(root->get(), "made", O_CREAT | O_WRONLY, 0600), IsOk());
  EXPECT_TRUE(std::filesystem::exists(directory_ / "root/made"));
  const std::string seen = "/proc/" + std::to_string(contained.pid()) + "/root/not";
  EXPECT_EQ(::open(seen.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600), -1);
  EXPECT_EQ(errno, EROFS);
}

TEST_F(ContainerRootTest, LeadsIntoNoVolume) {
  const Contained contained(directory_ / "root");
  ASSERT_TRUE(contained.made());
  Result<UniqueFd> root = OpenWritableRoot(contained.pid());
  ASSERT_THAT(root, IsOk());
  ASSERT_THAT(OpenAt(root->get(), "volume/file", O_CREAT | O_WRONLY, 0600), IsOk());
  EXPECT_TRUE(std::filesystem::exists(directory_ / "root/volume/file"));  // under the mount
  const std::string seen = "/proc/" + std::to_string(contained.pid()) + "/root/volume/file";
  EXPECT_FALSE(std::filesystem::exists(seen));
}

TEST_F(ContainerRootTest, AProcessThatIsGoneIsAnError) {
  EXPECT_FALSE(OpenWritableRoot(0x3fffff).ok());
}

}  // namespace
}  // namespace stasis::cri
