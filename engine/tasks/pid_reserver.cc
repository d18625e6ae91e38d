#include "engine/tasks/pid_reserver.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <set>
#include <utility>
#include <vector>

#include "engine/base/io.h"

namespace stasis::engine {
namespace {

constexpr int kAnswerTimeoutMs = 10'000;
constexpr pid_t kAbove = 16, kBelow = 48;
constexpr pid_t kFirstCandidate = 301;  // below RESERVED_PIDS (300) pids are seldom free

// Numbers for the helper itself, some of which should be free.
std::vector<pid_t> CandidatesBeside(std::span<const pid_t> wanted) {
  const std::set<pid_t> taken(wanted.begin(), wanted.end());
  const pid_t highest = std::max(taken.empty() ? 0 : *taken.rbegin(), kFirstCandidate);
  std::vector<pid_t> candidates;
  // Small pid namespaces (per-namespace pid_max, Linux 6.14) have little room above, and none where the tree's numbers
  // are the last that there are. Neighbours are often taken together.
  for (pid_t i = 0; i < kAbove; ++i) candidates.push_back(highest + 64 + i);
  const pid_t step = std::max((highest - kFirstCandidate) / kBelow, 1);
  for (pid_t i = 0; i < kBelow; ++i) {
    const pid_t pid = kFirstCandidate + i * step;
    if (!taken.contains(pid)) candidates.push_back(pid);
  }
  return candidates;
}

}  // namespace

Result<PidReserver> PidReserver::Start(pid_t member, const std::string& program,
                                       std::span<const pid_t> wanted) {
  ASSIGN_OR_RETURN(const UniqueFd ns,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(member) + "/ns/pid", O_RDONLY));
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0) {
    return SyscallError(errno, "pipe");
  }
  UniqueFd in_read(in[0]), in_write(in[1]);
  if (::pipe2(out, O_CLOEXEC) != 0) {
    return SyscallError(errno, "pipe");
  }
  UniqueFd out_read(out[0]), out_write(out[1]);

  constexpr int kNamespaceFd = 3;
  std::vector<std::string> words = {program, "last-pid", std::to_string(kNamespaceFd)};
  for (const pid_t pid : CandidatesBeside(wanted)) words.push_back(std::to_string(pid));
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  char* const environment[] = {nullptr};

  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in_read.get(), 0);
  ::posix_spawn_file_actions_adddup2(&actions, out_write.get(), 1);
  ::posix_spawn_file_actions_adddup2(&actions, ns.get(), kNamespaceFd);
  PidReserver reserver;
  const int error = ::posix_spawn(&reserver.helper_, program.c_str(), &actions, nullptr,
                                  argv.data(), environment);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    reserver.helper_ = 0;
    return SyscallError(error, "run " + program);
  }
  reserver.requests_ = std::move(in_write);
  reserver.answers_ = std::move(out_read);
  return reserver;
}

PidReserver::PidReserver(PidReserver&& other) noexcept
    : helper_(std::exchange(other.helper_, 0)),
      requests_(std::move(other.requests_)),
      answers_(std::move(other.answers_)),
      heard_(std::move(other.heard_)) {}

PidReserver::~PidReserver() {
  requests_.Reset();  // end of its input: it ends
  if (helper_ > 0) {
    while (::waitpid(helper_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

Result<int> PidReserver::Hear() {
  std::size_t end = heard_.find('\n');
  while (end == std::string::npos) {
    std::array<char, 4096> piece;
    pollfd wait = {.fd = answers_.get(), .events = POLLIN, .revents = 0};
    const bool ready = ::poll(&wait, 1, kAnswerTimeoutMs) > 0;
    const ssize_t got = ready ? ::read(answers_.get(), piece.data(), piece.size()) : 0;
    if (got <= 0) return Internal("the pid helper has ended; its reason is on standard error");
    heard_.append(piece.data(), static_cast<std::size_t>(got));
    end = heard_.find('\n');
  }
  const int number = std::atoi(heard_.c_str());
  heard_.erase(0, end + 1);
  return number;
}

Status PidReserver::CheckFree(std::span<const pid_t> pids) {
  constexpr std::size_t kAtOnce = 1000;  // whose answers a pipe has room for, 4 KiB at the least
  while (!pids.empty()) {
    const std::span<const pid_t> some = pids.first(std::min(pids.size(), kAtOnce));
    std::string questions;
    for (const pid_t pid : some) questions += "?" + std::to_string(pid) + "\n";
    RETURN_IF_ERROR(WriteAll(requests_.get(), questions));
    Status free;
    for (const pid_t pid : some) {
      ASSIGN_OR_RETURN(const int error, Hear());
      if (error == 0 || !free.ok()) continue;
      free = AlreadyExists(
          "pid " + std::to_string(pid) +
          " is taken by another process; end that, or restore in a pid namespace of its own");
    }
    RETURN_IF_ERROR(free);
    pids = pids.subspan(some.size());
  }
  return OkStatus();
}

Status PidReserver::MakeNext(pid_t pid) {
  RETURN_IF_ERROR(WriteAll(requests_.get(), std::to_string(pid) + "\n"));
  ASSIGN_OR_RETURN(const int error, Hear());
  if (error == 0) return OkStatus();
  return SyscallError(error, "write ns_last_pid for pid " + std::to_string(pid));
}

}  // namespace stasis::engine
