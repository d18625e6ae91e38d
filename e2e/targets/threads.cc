// Threads: TLS, names, signal masks, alternate stacks, and a mutex that one holds and one waits
// for.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "target.h"

namespace {

constexpr int kThreads = 4;
std::atomic<int> prepared = 0;
std::atomic<bool> go = false;
std::atomic<int> verified = 0;
thread_local int tls = -1;

void Work(int index) {
  tls = 1000 + index;
  const std::string name = "worker-" + std::to_string(index);
  CHECK(prctl(PR_SET_NAME, name.c_str()) == 0);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + index);
  CHECK(pthread_sigmask(SIG_SETMASK, &mask, nullptr) == 0);
  std::vector<char> stack(16384);
  const stack_t alternate = {.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
  CHECK(sigaltstack(&alternate, nullptr) == 0);
  const auto tid = syscall(SYS_gettid);
  void* robust = nullptr;
  size_t robust_size = 0;
  CHECK(syscall(SYS_get_robust_list, 0, &robust, &robust_size) == 0);

  prepared++;
  while (!go) {
    target::Sleep(1);
  }

  CHECK_EQ(tls, 1000 + index);
  CHECK_EQ(syscall(SYS_gettid), tid);
  std::array<char, 16> got_name{};
  CHECK(prctl(PR_GET_NAME, got_name.data()) == 0 && name == got_name.data());
  sigset_t got_mask;
  CHECK(pthread_sigmask(SIG_SETMASK, nullptr, &got_mask) == 0);
  for (int i = 0; i < kThreads; i++) {
    CHECK_EQ(sigismember(&got_mask, SIGRTMIN + i), i == index);
  }
  stack_t got_stack;
  CHECK(sigaltstack(nullptr, &got_stack) == 0);
  CHECK(got_stack.ss_sp == stack.data() && got_stack.ss_size == stack.size());
  void* got_robust = nullptr;
  CHECK(syscall(SYS_get_robust_list, 0, &got_robust, &robust_size) == 0);
  CHECK(got_robust == robust);
  verified++;
}

}  // namespace

int main(int, char** argv) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mutex);
  std::atomic<bool> locked = false;
  std::thread waiter([&] {
    pthread_mutex_lock(&mutex);  // sleeps in futex(2) across the checkpoint
    locked = true;
    pthread_mutex_unlock(&mutex);
  });
  std::vector<std::thread> workers;
  for (int i = 0; i < kThreads; i++) {
    workers.emplace_back(Work, i);
  }
  while (prepared < kThreads) {
    target::Sleep(1);
  }
  target::PassCheckpoint(argv[1]);
  go = true;
  for (std::thread& worker : workers) {
    worker.join();
  }
  CHECK_EQ(verified, kThreads);
  CHECK(!locked);
  pthread_mutex_unlock(&mutex);
  waiter.join();
  CHECK(locked);
}
