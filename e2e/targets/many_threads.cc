// So many threads that they are not asked one by one: their alternate stacks, parent-death signals, secure bits and
// time stamp counters.
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "target.h"

namespace {

constexpr int kThreads = 100;
constexpr int kAutoDisarm = static_cast<int>(1u << 31);  // SS_AUTODISARM
std::atomic<int> prepared = 0;
std::atomic<bool> go = false;

void Work(int index) {
  std::vector<char> room(32768);
  const bool has_stack = index % 3 != 0;
  const stack_t stack = {.ss_sp = room.data(),
                         .ss_flags = index % 3 == 1 ? kAutoDisarm : 0,
                         .ss_size = room.size() - static_cast<size_t>(index)};
  if (has_stack) CHECK(sigaltstack(&stack, nullptr) == 0);
  const int signal = index % 5 == 0 ? 0 : SIGRTMIN + index % 5;
  CHECK(prctl(PR_SET_PDEATHSIG, signal) == 0);
  const int bits = index % 7 == 0 ? SECBIT_NOROOT : 0;
  CHECK(prctl(PR_SET_SECUREBITS, bits) == 0);
  const int counter = index % 11 == 0 ? PR_TSC_SIGSEGV : PR_TSC_ENABLE;
  CHECK(prctl(PR_SET_TSC, counter) == 0);

  prepared++;
  go.wait(false);

  stack_t got_stack;
  CHECK(sigaltstack(nullptr, &got_stack) == 0);
  CHECK_EQ(got_stack.ss_flags, has_stack ? stack.ss_flags : SS_DISABLE);
  if (has_stack) CHECK(got_stack.ss_sp == room.data() && got_stack.ss_size == stack.ss_size);
  int got = -1;
  CHECK(prctl(PR_GET_PDEATHSIG, &got) == 0);
  CHECK_EQ(got, signal);
  CHECK_EQ(prctl(PR_GET_SECUREBITS), bits);
  CHECK(prctl(PR_GET_TSC, &got) == 0);
  CHECK_EQ(got, counter);
}

}  // namespace

int main(int, char** argv) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) threads.emplace_back(Work, i);
  while (prepared < kThreads) target::Sleep(1);
  target::PassCheckpoint(argv[1]);
  go = true;
  go.notify_all();
  for (std::thread& thread : threads) thread.join();
}
