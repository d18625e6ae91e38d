#include "engine/tracee/task_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace stasis::engine {
namespace {

TEST(TaskFilesTest, TellWhatIsNow) {
  TaskFiles files(getpid(), gettid());
  ::prctl(PR_SET_NAME, "before");
  files.Open();
  ::prctl(PR_SET_NAME, "after");
  const auto status = files.Read(TaskFiles::kStatus);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_TRUE(status->starts_with("Name:\tafter\n")) << *status;
}

TEST(TaskFilesTest, OfATaskThatEndedSayNothing) {
  const pid_t child = ::fork();
  if (child == 0) ::pause();
  TaskFiles files(child, child);
  files.Open();
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(files.Read(TaskFiles::kStatus).status().code(), StatusCode::kNotFound);
}

TEST(TaskFilesTest, TellMoreChildrenThanFitIntoAPage) {
  constexpr std::size_t kChildren = 1000;
  const pid_t parent = ::fork();
  if (parent == 0) {
    for (std::size_t i = 0; i < kChildren; ++i) {
      if (::fork() == 0) ::_exit(0);
    }
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  ::waitpid(parent, nullptr, WUNTRACED);
  TaskFiles files(parent, parent);
  const auto fresh = files.Read(TaskFiles::kChildren);
  files.Open();
  const auto children = files.Read(TaskFiles::kChildren);
  ::kill(parent, SIGKILL);
  ::waitpid(parent, nullptr, 0);
  ASSERT_TRUE(fresh.ok() && children.ok());
  EXPECT_EQ(std::ranges::count(*children, ' '), kChildren);
  EXPECT_EQ(*children, *fresh);
}

TEST(TaskFilesTest, LeaveMostDescriptorsToOthers) {
  rlimit limit = {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit low = {120, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  std::vector<TaskFiles> many;
  for (int i = 0; i < 100; ++i) many.emplace_back(getpid(), gettid()).Open();
  EXPECT_TRUE(many.back().Read(TaskFiles::kStatus).ok());
  EXPECT_LT(::dup(STDERR_FILENO), 60);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
}

}  // namespace
}  // namespace stasis::engine
