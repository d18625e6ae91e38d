// As many requests that do nothing as the old ring had taken, each of which completes or does not.
//
// Source   io_uring_enter(2), futex(2) FUTEX_WAKE_OP; io_get_sqe(), io_cqe_cache_refill() in io_uring/io_uring.c; tested
//          on 6.18
// Rule     The kernel keeps the positions where it takes requests and gives completions for itself, besides those that
//          it tells. liburing keeps positions, too, and counts on from them.
// Rule     A request with IOSQE_CQE_SKIP_SUCCESS makes the ring refuse IOSQE_IO_DRAIN for ever.
// Rule     The kernel looks at where completions are fetched (cq.head) when it makes room for some at once, and then
//          uses that room whatever the program writes: the head is never ahead of where it is to be in the end.
#include "engine/files/io_uring_advance.h"

#include <linux/futex.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

namespace stasis::engine {
namespace {

void PutWord(std::span<std::byte> bytes, std::uint32_t place, std::uint32_t word) {
  std::memcpy(bytes.data() + place, &word, sizeof(word));
}

// Brings a new ring to the positions of an old one.
class Advancer {
 public:
  Advancer(RemoteSyscalls& remote, const OneRun& how, int number, const image::IoUringEntry& old,
           const RingMemory& ring, const RingMemory& entries, std::uint32_t cq_head)
      : remote_(remote),
        how_(how),
        number_(number),
        old_(old),
        ring_(ring.bytes()),
        entries_(entries.bytes()),
        cq_head_(cq_head) {}

  Status Run() {
    if (old_.sq_head() == 0) return OkStatus();
    const auto size = static_cast<std::uint64_t>(old_.ring_bytes());
    ASSIGN_OR_RETURN(const std::uint64_t mapped,
                     remote_.Call("mmap of an io_uring", SYS_mmap, 0, size, PROT_READ | PROT_WRITE,
                                  MAP_SHARED, number_, IORING_OFF_SQ_RING));
    head_address_ = mapped + old_.layout().cq_head();
    // Requests that do nothing are all zeros, in the entries and in the array of their numbers.
    PutWord(ring_, old_.layout().sq_tail(), old_.sq_head());
    const std::uint32_t skipped = old_.sq_head() - old_.cq_tail();
    std::uint32_t rest = old_.cq_tail();
    if (skipped > 0) {
      Fill(IORING_OP_NOP, IOSQE_CQE_SKIP_SUCCESS);
      RETURN_IF_ERROR(Submit(skipped, false));
    } else if (old_.drain_disabled()) {
      // One that fails completes though it was to be skipped.
      Fill(IORING_OP_FSYNC, IOSQE_CQE_SKIP_SUCCESS);
      RETURN_IF_ERROR(Submit(1, true));
      --rest;
    }
    Fill(IORING_OP_NOP, 0);
    RETURN_IF_ERROR(Submit(rest, true));
    return remote_.Call("munmap", SYS_munmap, mapped, size).status();
  }

 private:
  void Fill(std::uint8_t operation, std::uint8_t flags) {
    std::ranges::fill(entries_, std::byte{0});
    const std::size_t size = entries_.size() / old_.sq_entries();
    for (std::size_t at = 0; at < entries_.size(); at += size) {
      io_uring_sqe entry = {};
      entry.opcode = operation;
      entry.flags = flags;
      entry.fd = -1;
      std::memcpy(entries_.data() + at, &entry, sizeof(entry));
    }
  }

  Status Submit(std::uint32_t count, bool completes) {
    constexpr std::uint32_t kMostAtOnce = 1024;  // that FUTEX_WAKE_OP can add: 12 bits with a sign
    constexpr std::size_t kMostCalls = 2000;
    while (count > 0) {
      CallBatch batch;
      while (count > 0 && batch.size() < kMostCalls) {
        const std::uint32_t some = std::min({count, old_.sq_entries(), kMostAtOnce});
        AddSubmission(batch, some);
        if (completes) AddFetch(batch, some);
        count -= some;
      }
      RETURN_IF_ERROR(batch.Begin(remote_, how_));
      RETURN_IF_ERROR(batch.End());
    }
    return OkStatus();
  }

  void AddSubmission(CallBatch& batch, std::uint32_t count) const {
    batch.AddChecked("io_uring_enter", SYS_io_uring_enter,
                     {static_cast<std::uint64_t>(number_), count, 0, 0, 0, 0}, 0,
                     [count](std::int64_t taken) -> Status {
                       if (taken == count) return OkStatus();
                       return Internal("io_uring_enter took " + std::to_string(taken) + " of " +
                                       std::to_string(count) + " requests");
                     });
  }

  // What was completed is fetched, up to where the program had fetched.
  void AddFetch(CallBatch& batch, std::uint32_t count) {
    completed_ += count;
    const std::uint32_t head = std::min(completed_, cq_head_);
    const std::uint32_t more = head - std::exchange(fetched_, head);
    if (more == 0) return;
    const auto add = static_cast<std::uint64_t>(FUTEX_OP(FUTEX_OP_ADD, more, FUTEX_OP_CMP_EQ, 0));
    batch.Add("futex FUTEX_WAKE_OP", SYS_futex,
              {head_address_, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, 0, head_address_,
               add & 0xffff'ffff});
  }

  RemoteSyscalls& remote_;
  const OneRun& how_;
  const int number_;
  const image::IoUringEntry& old_;
  const std::span<std::byte> ring_, entries_;
  const std::uint32_t cq_head_;
  std::uint64_t head_address_ = 0;
  std::uint32_t completed_ = 0, fetched_ = 0;
};

}  // namespace

Status AdvanceRing(RemoteSyscalls& remote, const OneRun& how, int number,
                   const image::IoUringEntry& old, const RingMemory& ring,
                   const RingMemory& entries, std::uint32_t cq_head) {
  return Advancer(remote, how, number, old, ring, entries, cq_head).Run();
}

}  // namespace stasis::engine
