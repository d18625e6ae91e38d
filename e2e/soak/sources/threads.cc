// Counts for each client, while its threads use every common way to wait for each other and check what
// each of them promises.

#include <arpa/inet.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <future>
#include <latch>
#include <map>
#include <mutex>
#include <semaphore>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using std::chrono::milliseconds;

constexpr int kThreads = 4;

std::atomic<const char*> wrong = nullptr;

void Expect(bool holds, const char* what) {
  if (!holds) {
    wrong = what;
  }
}

/// Rounds that a test made, so that one that hangs is seen.
struct Test {
  const char* name;
  void (*round)(int thread);
  std::atomic<long> rounds = 0;
  long seen = 0;
};

class PthreadMutex {
 public:
  PthreadMutex(int type, int protocol, int robust) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, type);
    pthread_mutexattr_setprotocol(&attributes, protocol);
    pthread_mutexattr_setrobust(&attributes, robust);
    pthread_mutex_init(&mutex_, &attributes);
  }
  int lock() { return pthread_mutex_lock(&mutex_); }
  int unlock() { return pthread_mutex_unlock(&mutex_); }
  void consistent() { pthread_mutex_consistent(&mutex_); }

 private:
  pthread_mutex_t mutex_;
};

void Pause() { std::this_thread::sleep_for(milliseconds(1)); }

template <typename Lock>
void Exclude(Lock& lock, int& inside) {
  Expect(lock.lock() == 0, "a lock that cannot be taken");
  Expect(++inside == 1, "two inside a lock");
  Pause();
  --inside;
  Expect(lock.unlock() == 0, "a lock that its owner cannot give back");
}

void Mutex(int) {
  static PthreadMutex mutex(PTHREAD_MUTEX_ERRORCHECK, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_STALLED);
  static int inside = 0;
  Exclude(mutex, inside);
}

void Inheriting(int) {
  static PthreadMutex mutex(PTHREAD_MUTEX_ERRORCHECK, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_STALLED);
  static int inside = 0;
  Exclude(mutex, inside);
}

void Recursive(int) {
  static std::recursive_mutex mutex;
  static int inside = 0;
  const std::lock_guard outer(mutex), inner(mutex);
  Expect(++inside == 1, "two inside a recursive mutex");
  Pause();
  --inside;
}

void Robust(int thread) {
  static PthreadMutex mutex(PTHREAD_MUTEX_NORMAL, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_ROBUST);
  static std::mutex one;
  if (thread != 0) {
    return Pause();
  }
  const std::lock_guard lock(one);
  std::thread([] {
    Expect(mutex.lock() == 0, "a robust mutex that cannot be taken");
    Pause();
  }).join();
  Expect(mutex.lock() == EOWNERDEAD, "a dead owner that is not told of");
  mutex.consistent();
  mutex.unlock();
}

void ReadWrite(int thread) {
  static std::shared_mutex mutex;
  static long first = 0, second = 0;
  if (thread == 0) {
    const std::unique_lock lock(mutex);
    ++first;
    Pause();
    ++second;
  } else {
    const std::shared_lock lock(mutex);
    Expect(first == second, "a reader beside a writer");
    Pause();
  }
}

void Condition(int thread) {
  static std::mutex mutex;
  static std::condition_variable changed;
  static int turn = 0;
  std::unique_lock lock(mutex);
  Expect(changed.wait_for(lock, std::chrono::seconds(60), [thread] { return turn == thread; }),
         "a turn that never comes");
  turn = (turn + 1) % kThreads;
  changed.notify_all();
}

void Barrier(int) {
  static std::barrier barrier(kThreads);
  static std::atomic<long> before = 0;
  ++before;
  barrier.arrive_and_wait();
  Expect(before % kThreads == 0, "one past a barrier before the last has come");
  barrier.arrive_and_wait();
}

void Semaphore(int) {
  static std::counting_semaphore<2> semaphore(2);
  static std::atomic<int> inside = 0;
  semaphore.acquire();
  Expect(++inside <= 2, "three inside a semaphore of two");
  Pause();
  --inside;
  semaphore.release();
}

void Latch(int) {
  std::latch done(2);
  std::atomic<int> count = 0;
  const auto work = [&] {
    ++count;
    done.count_down();
  };
  std::jthread one(work), two(work);
  done.wait();
  Expect(count == 2, "a latch that opens too early");
}

void Timeout(int) {
  uint32_t word = 0;
  const auto start = std::chrono::steady_clock::now();
  const timespec wait = {.tv_sec = 0, .tv_nsec = 20'000'000};
  const long got = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &wait, nullptr, 0);
  Expect(got == -1 && (errno == ETIMEDOUT || errno == EINTR), "the end of a futex wait");
  Expect(errno == EINTR || std::chrono::steady_clock::now() - start >= milliseconds(20),
         "a futex wait that ends too early");
}

void Local(int thread) {
  thread_local long mine = 0;
  static std::atomic<long> all[kThreads];
  Expect(++mine == ++all[thread], "a thread_local of another thread");
  Pause();
}

void Async(int thread) {
  std::promise<int> promise;
  auto twice = std::async(std::launch::async, [&] { return promise.get_future().get() * 2; });
  Pause();
  promise.set_value(thread);
  Expect(twice.get() == thread * 2, "the answer of std::async");
}

void Once(int) {
  static std::once_flag flag;
  static std::atomic<int> calls = 0;
  std::call_once(flag, [] { ++calls; });
  Expect(calls == 1, "call_once");
  Pause();
}

Test tests[] = {{"mutex", Mutex},     {"pi", Inheriting},       {"recursive", Recursive},
                {"robust", Robust},   {"rwlock", ReadWrite},    {"condvar", Condition},
                {"barrier", Barrier}, {"semaphore", Semaphore}, {"latch", Latch},
                {"timeout", Timeout}, {"local", Local},         {"async", Async},
                {"once", Once}};

/// Empty, or what is not as it should be. Every test has to move between two calls 5 s apart.
std::string Check() {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  for (Test& test : tests) {
    for (int i = 0; i < 5000 && test.rounds == test.seen; ++i) {
      Pause();
    }
    if (test.rounds == test.seen) {
      return std::string(test.name) + " stands still";
    }
    test.seen = test.rounds;
  }
  return wrong == nullptr ? "ok" : wrong.load();
}

std::string Add(const std::string& client) {
  static std::mutex mutex;
  static std::map<std::string, long> counts;
  const std::lock_guard lock(mutex);
  return client + " " + std::to_string(++counts[client]);
}

void Serve(int connection) {
  std::string input;
  char buffer[4096];
  for (ssize_t got; (got = read(connection, buffer, sizeof(buffer))) > 0;) {
    input.append(buffer, static_cast<size_t>(got));
    if (!input.ends_with("\r\n\r\n")) {
      continue;
    }
    const std::string path = input.substr(4, input.find(' ', 4) - 4);
    input.clear();
    const std::string body = path == "/check" ? Check() : Add(path.substr(path.rfind('/') + 1));
    const std::string answer =
        "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    if (write(connection, answer.data(), answer.size()) < 0) {
      break;
    }
  }
  close(connection);
}

}  // namespace

int main() {
  for (Test& test : tests) {
    for (int thread = 0; thread < kThreads; ++thread) {
      std::thread([&test, thread] {
        for (;; ++test.rounds) {
          test.round(thread);
          std::this_thread::sleep_for(milliseconds(5));
        }
      }).detach();
    }
  }
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(8080), .sin_addr = {}, .sin_zero = {}};
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener, 64) != 0) {
    perror("listen");
    return 1;
  }
  while (true) {
    if (const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC); connection >= 0) {
      std::thread(Serve, connection).detach();
    }
  }
}
