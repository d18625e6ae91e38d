// A ring of io_uring(7), used as liburing does: the positions that it reads and writes are its own.
#pragma once

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstdint>

#include "target.h"

namespace target {

inline int Enter(int fd, unsigned submit, unsigned wait, unsigned flags) {
  return static_cast<int>(syscall(SYS_io_uring_enter, fd, submit, wait, flags, nullptr, 0));
}
inline int Register(int fd, unsigned operation, const void* argument, unsigned count) {
  return static_cast<int>(syscall(SYS_io_uring_register, fd, operation, argument, count));
}

/// Ends the target with 77 where rings are not allowed.
class Ring {
 public:
  Ring(unsigned entries, unsigned flags, unsigned completions = 0) {
    parameters_.flags = flags | (completions != 0 ? IORING_SETUP_CQSIZE : 0u);
    parameters_.cq_entries = completions;
    fd_ = static_cast<int>(syscall(SYS_io_uring_setup, entries, &parameters_));
    if (fd_ < 0 && (errno == EPERM || errno == ENOSYS || errno == EINVAL)) {
      std::printf("io_uring_setup with flags %x: %s\n", flags, std::strerror(errno));
      std::fflush(stdout);
      _exit(77);
    }
    CHECK(fd_ >= 0);
    completion_bytes_ = (flags & IORING_SETUP_CQE32) != 0 ? 32 : 16;
    entry_bytes_ = (flags & IORING_SETUP_SQE128) != 0 ? 128 : 64;
    const size_t array = parameters_.sq_off.array + parameters_.sq_entries * sizeof(unsigned);
    const size_t all = parameters_.cq_off.cqes + parameters_.cq_entries * completion_bytes_;
    ring_ = Map(array > all ? array : all, IORING_OFF_SQ_RING);
    entries_ = Map(parameters_.sq_entries * entry_bytes_, IORING_OFF_SQES);
    for (unsigned i = 0; i < parameters_.sq_entries; ++i) At(parameters_.sq_off.array)[i] = i;
  }

  int fd() const { return fd_; }
  unsigned count() const { return parameters_.sq_entries; }

  /// The next request, all zeros, to be filled; it belongs to the next Submit().
  io_uring_sqe& Next() {
    char* const at = entries_ + (tail_++ & (count() - 1)) * entry_bytes_;
    memset(at, 0, entry_bytes_);
    return *reinterpret_cast<io_uring_sqe*>(at);
  }
  /// Tells the kernel of all requests, and gives how many it took.
  int Submit(unsigned wait = 0) {
    const unsigned more = tail_ - told_;
    told_ = tail_;
    __atomic_store_n(At(parameters_.sq_off.tail), tail_, __ATOMIC_RELEASE);
    return Enter(fd_, more, wait, wait != 0 ? IORING_ENTER_GETEVENTS : 0);
  }
  unsigned waiting() const {
    return __atomic_load_n(At(parameters_.cq_off.tail), __ATOMIC_ACQUIRE) - head_;
  }
  /// The oldest completion, which must be there.
  io_uring_cqe Take() {
    CHECK(waiting() > 0);
    const char* const at = ring_ + parameters_.cq_off.cqes +
                           (head_ & (parameters_.cq_entries - 1)) * completion_bytes_;
    io_uring_cqe completion;
    memcpy(&completion, at, sizeof(completion));
    __atomic_store_n(At(parameters_.cq_off.head), ++head_, __ATOMIC_RELEASE);
    return completion;
  }
  /// Runs `count` requests that do nothing, one by one or as many as there is room for, and takes what they give.
  void Spin(unsigned count_of_all) {
    while (count_of_all > 0) {
      const unsigned some = count_of_all < count() ? count_of_all : count();
      for (unsigned i = 0; i < some; ++i) Next().user_data = i;
      CHECK_EQ(Submit(some), some);
      for (unsigned i = 0; i < some; ++i) CHECK_EQ(Take().user_data, i);
      count_of_all -= some;
    }
  }
  /// One request that does nothing, whose completion is left where it is.
  void Leave(std::uint64_t number) {
    Next().user_data = number;
    CHECK_EQ(Submit(), 1);
  }
  /// Submits what Next() gave, and takes its completion.
  io_uring_cqe Run() {
    CHECK_EQ(Submit(1), 1);
    return Take();
  }

  unsigned tail() const { return tail_; }
  /// The kernel's positions, as it tells them.
  unsigned taken() const { return *At(parameters_.sq_off.head); }
  unsigned completed() const { return *At(parameters_.cq_off.tail); }

 private:
  char* Map(size_t size, off_t place) const {
    void* const at =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, place);
    CHECK(at != MAP_FAILED);
    return static_cast<char*>(at);
  }
  unsigned* At(unsigned place) const { return reinterpret_cast<unsigned*>(ring_ + place); }

  io_uring_params parameters_ = {};
  int fd_ = -1;
  size_t completion_bytes_ = 0, entry_bytes_ = 0;
  char *ring_ = nullptr, *entries_ = nullptr;
  unsigned tail_ = 0, told_ = 0, head_ = 0;
};

}  // namespace target
