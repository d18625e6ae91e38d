#include "deploy/node/services.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "engine/base/io.h"
#include "engine/base/unique_fd.h"

namespace stasis::node {
namespace {

constexpr std::chrono::seconds kSteady{10};  // a kubelet that lacks its runtime ends within 5
constexpr std::chrono::seconds kBetweenLooks{1};

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

// Starts `command` with both of its outputs in `output`.
Result<pid_t> Spawn(const std::vector<std::string>& command, int output) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return SyscallError(error, "run " + command[0]);
  return pid;
}

}  // namespace

Result<std::string> RunProgram(const std::vector<std::string>& command) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    const int error = errno;
    return SyscallError(error, "pipe2");
  }
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(command, to.get()));
  to.Reset();
  auto said = ReadFd(from.get());
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return said;
  return Internal(Joined(command) + ": " + (said.ok() ? *said : "no word"));
}

Status Services::Systemctl(std::vector<std::string> arguments) const {
  if (offline_) return OkStatus();
  arguments.insert(arguments.begin(), "systemctl");
  return RunProgram(arguments).status();
}

Result<std::string> Services::Show(const std::string& service, const std::string& property) const {
  if (offline_) return std::string();
  ASSIGN_OR_RETURN(std::string text, RunProgram({"systemctl", "show", "--value",
                                                 "--property=" + property, service + ".service"}));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

Status Services::RestartSteadily(const std::string& service, std::chrono::seconds patience) const {
  if (offline_) return OkStatus();
  // A number of each start of a service: systemd.exec(5), $INVOCATION_ID.
  ASSIGN_OR_RETURN(const std::string before, Show(service, "InvocationID"));
  // Not waited for: k3s says that it has started only when its kubelet has been ready once.
  RETURN_IF_ERROR(Systemctl({"restart", "--no-block", service + ".service"}));
  const auto end = std::chrono::steady_clock::now() + patience;
  auto steady_since = std::chrono::steady_clock::now();
  bool restarted = false;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(kBetweenLooks);
    const auto now = std::chrono::steady_clock::now();
    const auto invocation = Show(service, "InvocationID");
    restarted = restarted || (invocation.ok() && *invocation != before);
    if (!restarted || !Systemctl({"is-active", "--quiet", service + ".service"}).ok()) {
      steady_since = now;
    }
    if (now - steady_since >= kSteady) return OkStatus();
  }
  if (!restarted) return Aborted(service + ".service was told to restart and did not");
  return DeadlineExceeded(service + " does not stay up; see journalctl -u " + service);
}

}  // namespace stasis::node
