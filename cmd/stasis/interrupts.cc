#include "cmd/stasis/interrupts.h"

#include <pthread.h>

namespace stasis::cli {
namespace {

constexpr int kSignals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};

bool IsIgnored(int signal) {
  struct sigaction action = {};
  ::sigaction(signal, nullptr, &action);
  return action.sa_handler == SIG_IGN;
}

/// 0 when all are ignored.
int AnyOf(const sigset_t& signals) {
  for (const int signal : kSignals) {
    if (sigismember(&signals, signal) == 1) return signal;
  }
  return 0;
}

}  // namespace

Interrupts::Interrupts() {
  sigemptyset(&signals_);
  for (const int signal : kSignals) {
    // A blocked signal waits for us even when it is ignored, as nohup(1) wants it to be.
    if (!IsIgnored(signal)) sigaddset(&signals_, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  if (AnyOf(signals_) != 0) thread_ = std::thread([this] { Wait(); });
}

Interrupts::~Interrupts() {
  done_ = true;
  if (thread_.joinable()) {
    pthread_kill(thread_.native_handle(), AnyOf(signals_));  // to end its waiting
    thread_.join();
  }
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void Interrupts::PassOnTo(pid_t pid) {
  const std::lock_guard lock(mutex_);
  passed_on_to_ = pid;
  if (caught_ != 0) ::kill(pid, caught_);
}

void Interrupts::Wait() {
  int signal = 0;
  while (sigwait(&signals_, &signal) == 0 && !done_) {
    const std::lock_guard lock(mutex_);
    if (passed_on_to_ > 0) {
      ::kill(passed_on_to_, signal);
      continue;
    }
    if (caught_ == 0) caught_ = signal;
    stop_.request_stop();
  }
}

}  // namespace stasis::cli
