#include "kubelet-api/client/kubectl.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "engine/base/unique_fd.h"

extern char** environ;

namespace stasis::kubelet_api {
namespace {

struct Pipe {
  UniqueFd read, write;
};

Result<Pipe> MakePipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) {
    const int error = errno;
    return SyscallError(error, "pipe");
  }
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

Result<pid_t> Spawn(const std::vector<std::string>& words, int out, int err) {
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, out, 1);
  ::posix_spawn_file_actions_adddup2(&actions, err, 2);
  pid_t pid = 0;
  const int error =
      ::posix_spawnp(&pid, arguments[0], &actions, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return SyscallError(error, "run " + words[0] + ", which has to be in the PATH");
  return pid;
}

// False at the end of what `fd` gives.
bool Append(int fd, std::string& text) {
  std::array<char, 16384> piece;
  const ssize_t got = ::read(fd, piece.data(), piece.size());
  if (got > 0) text.append(piece.data(), static_cast<std::size_t>(got));
  return got > 0 || (got < 0 && errno == EINTR);
}

using Deadline = std::optional<std::chrono::steady_clock::time_point>;

// In milliseconds, as poll(2) wants it; -1: for ever.
int TimeUntil(const Deadline& deadline) {
  if (!deadline) return -1;
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(*deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
}

// False: the deadline came first.
bool ReadBoth(int out, std::string& out_text, int err, std::string& err_text,
              const Deadline& deadline) {
  std::array<pollfd, 2> waiting = {{{out, POLLIN, 0}, {err, POLLIN, 0}}};
  while (waiting[0].fd >= 0 || waiting[1].fd >= 0) {
    if (deadline && std::chrono::steady_clock::now() >= *deadline) return false;
    if (::poll(waiting.data(), waiting.size(), TimeUntil(deadline)) <= 0) continue;
    if (waiting[0].revents != 0 && !Append(out, out_text)) waiting[0].fd = -1;
    if (waiting[1].revents != 0 && !Append(err, err_text)) waiting[1].fd = -1;
  }
  return true;
}

Status ErrorOf(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const auto says = [&](std::string_view words) { return text.find(words) != std::string::npos; };
  if (says("(NotFound)")) return NotFound(text);
  if (says("(Forbidden)")) return PermissionDenied(text);
  if (says("(Unauthorized)") || says("must be logged in")) {
    return MakeStatus(StatusCode::kUnauthenticated, text);
  }
  if (says("exists and is not overwritten")) return AlreadyExists(text);
  if (says("(Timeout)") || says("deadline exceeded") || says("Client.Timeout") ||
      says("timed out waiting")) {
    return MakeStatus(StatusCode::kDeadlineExceeded, text);
  }
  if (says("Unable to connect") || says("connection refused") || says("was refused")) {
    return Unavailable(text);
  }
  return MakeStatus(StatusCode::kUnknown, text.empty() ? "kubectl did not succeed" : text);
}

// `out` -1: the output is read into `text`.
Status Execute(const std::vector<std::string>& words, int out, std::string& text,
               std::chrono::seconds most) {
  Deadline deadline;
  if (most.count() > 0) deadline = std::chrono::steady_clock::now() + most;
  ASSIGN_OR_RETURN(Pipe errors, MakePipe());
  std::optional<Pipe> output;
  if (out < 0) {
    ASSIGN_OR_RETURN(output, MakePipe());
    out = output->write.get();
  }
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(words, out, errors.write.get()));
  errors.write.Reset();
  if (output) output->write.Reset();
  std::string said;
  const bool in_time =
      ReadBoth(output ? output->read.get() : -1, text, errors.read.get(), said, deadline);
  if (!in_time) ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!in_time) {
    return MakeStatus(StatusCode::kDeadlineExceeded,
                      "no answer within " + std::to_string(most.count()) + " s");
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? OkStatus() : ErrorOf(said);
}

std::vector<std::string> Whole(const std::vector<std::string>& flags,
                               const std::vector<std::string>& words) {
  const char* const program = std::getenv("KUBECTL");
  std::vector<std::string> all = {program == nullptr || *program == '\0' ? "kubectl" : program};
  all.insert(all.end(), flags.begin(), flags.end());
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

}  // namespace

Result<std::string> Kubectl::Run(const std::vector<std::string>& words,
                                 std::chrono::seconds most) const {
  std::string text;
  RETURN_IF_ERROR(Execute(Whole(flags_, words), -1, text, most));
  return text;
}

Status Kubectl::RunTo(int fd, const std::vector<std::string>& words) const {
  std::string none;
  return Execute(Whole(flags_, words), fd, none, std::chrono::seconds(0));
}

}  // namespace stasis::kubelet_api
