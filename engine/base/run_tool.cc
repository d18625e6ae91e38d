// Source  posix_spawn(3), memfd_create(2)
// Rule    What is spawned is in the namespaces of the thread that spawns it (namespaces(7))
#include "engine/base/run_tool.h"

#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis {
namespace {

constexpr const char* kFolders[] = {"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"};
constexpr char kPath[] = "PATH=/usr/sbin:/sbin:/usr/bin:/bin";
constexpr char kLanguage[] = "LC_ALL=C";

Result<UniqueFd> MakeBuffer(std::string_view content) {
  UniqueFd fd(::memfd_create("tool", MFD_CLOEXEC));
  if (!fd) return SyscallError(errno, "memfd_create");
  RETURN_IF_ERROR(WriteAll(fd.get(), content));
  if (::lseek(fd.get(), 0, SEEK_SET) < 0) return SyscallError(errno, "lseek");
  return fd;
}

Result<std::string> ReadBuffer(int fd) {
  if (::lseek(fd, 0, SEEK_SET) < 0) return SyscallError(errno, "lseek");
  return ReadFd(fd);
}

Result<pid_t> Spawn(const std::string& program, std::vector<std::string>& words, int in, int out,
                    int error) {
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::string path = kPath, language = kLanguage;
  char* const environment[] = {path.data(), language.data(), nullptr};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, error, STDERR_FILENO);
  pid_t pid = 0;
  const int result =
      ::posix_spawn(&pid, program.c_str(), &actions, nullptr, argv.data(), environment);
  ::posix_spawn_file_actions_destroy(&actions);
  if (result != 0) return SyscallError(result, "run " + program);
  return pid;
}

}  // namespace

Result<std::string> RunTool(std::vector<std::string> words, std::string_view input) {
  std::string program;
  for (const char* const folder : kFolders) {
    const std::string candidate = folder + words.front();
    if (program.empty() && ::access(candidate.c_str(), X_OK) == 0) program = candidate;
  }
  if (program.empty()) return NotFound("this machine has no " + words.front());
  ASSIGN_OR_RETURN(const UniqueFd in, MakeBuffer(input));
  ASSIGN_OR_RETURN(const UniqueFd out, MakeBuffer({}));
  ASSIGN_OR_RETURN(const UniqueFd error, MakeBuffer({}));
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(program, words, in.get(), out.get(), error.get()));
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return SyscallError(errno, "wait for " + program);
  }
  if (status != 0) {
    ASSIGN_OR_RETURN(const std::string said, ReadBuffer(error.get()));
    return Internal(program + ": " + said.substr(0, said.find('\n')));
  }
  return ReadBuffer(out.get());
}

}  // namespace stasis
