// What the kernel knows of a ring of io_uring, read from its own structures.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/kernel_memory.h"
#include "engine/base/status.h"

namespace stasis::engine {

/// A task that has used a ring.
struct RingUser {
  pid_t tid = 0;               ///< As we see it; 0: it is not in our pid namespace.
  std::int64_t under_way = 0;  ///< Requests of it, in all its rings.
  std::vector<std::pair<std::uint32_t, KernelAddress>>
      handles;  ///< Its registered rings: index, struct file.
};

struct RingSlot {
  KernelAddress file = 0;  ///< 0: empty
  std::uint64_t tag = 0;
};

struct RingBuffer {
  std::uint64_t address = 0, length = 0;  ///< length 0: empty
  std::uint64_t tag = 0;
  std::vector<std::uint64_t> frames =
      {};  ///< The number of each page's frame, from that of `address` on.
};

struct RingState {
  std::uint32_t setup_flags = 0, sq_entries = 0, cq_entries = 0;
  std::uint32_t sq_head = 0, cq_tail = 0;  ///< The kernel's own.
  bool drain_disabled = false;
  std::optional<pid_t> submitter;  ///< The one task that may submit, as we see it.
  std::vector<RingUser> users;
  KernelAddress eventfd = 0;  ///< struct eventfd_ctx, or 0
  bool eventfd_async = false;
  std::vector<RingSlot> files;
  std::vector<RingBuffer> buffers;
  std::vector<std::uint32_t> worker_limits;  ///< Two, or none where they are the kernel's own.
  std::uint64_t sq_array = 0;                ///< Where in the ring's memory; 0: it has none.
  std::string
      busy;  ///< What is still to be finished by the kernel, or by the program; empty: nothing.
};

class RingReader {
 public:
  /// FailedPrecondition, PermissionDenied: the kernel's structures cannot be read, or are newer than what we know.
  static Result<RingReader> Create();

  /// What there is of our descriptor `fd`, a ring. Unimplemented: it has something that cannot be restored.
  Result<RingState> Read(int fd);
  KernelMemory& memory() { return memory_; }
  /// Where members of struct io_rings lie, "sq.head".
  Result<std::uint32_t> PlaceInRings(std::string_view member) const;
  /// The struct eventfd_ctx of our descriptor `fd`, an eventfd.
  Result<KernelAddress> EventfdOf(int fd);

 private:
  explicit RingReader(KernelMemory memory) : memory_(std::move(memory)) {}
  Result<std::uint64_t> Get(std::string_view path) {
    return memory_.Number(ring_, "io_ring_ctx", path);
  }
  Result<bool> ListIsEmpty(KernelAddress head);
  Status CheckRestorable(const RingState& state);
  Result<std::string> WhatIsBusy(const RingState& state);
  Status ReadUsers(RingState& state);
  Result<RingUser> ReadUser(KernelAddress task);
  Result<pid_t> NumberOf(KernelAddress task);
  Status ReadEventfd(RingState& state);
  Status ReadFiles(RingState& state);
  Status ReadBuffers(RingState& state);
  Result<RingBuffer> ReadBuffer(KernelAddress node);
  Status ReadFrames(KernelAddress buffer, RingBuffer& found);
  Status FindFrames();

  KernelMemory memory_;
  KernelAddress ring_ = 0;                   // struct io_ring_ctx of the moment
  std::optional<std::uint64_t> first_page_;  // struct page of frame 0
  std::uint64_t page_bytes_ = 0;             // of a struct page
};

}  // namespace stasis::engine
