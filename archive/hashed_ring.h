// A ring of few buffers between who writes a stream and what becomes of it:
//
//     caller     fills a buffer, or says who does; is given each back in order, when the others are done with it
//     workers    fill a buffer each where the caller did not, and do their work on it: write it, compress it
//     hasher     hashes the members that lie in the buffers
//
// Who writes is the thread that holds a container frozen, so it neither hashes nor compresses. Memory is bounded:
// who fills the ring waits for its oldest buffer.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::archive {

class HashedRing {
 public:
  /// A buffer is a piece of the stream between two multiples of this.
  static constexpr std::size_t kBytes = std::size_t{1} << 20;

  /// Content of the stream, in memory at the same distance from a multiple of kAlignment as in the stream.
  struct Buffer {
    std::size_t slot = 0;  ///< Below the number of buffers.
    int kind = 0;          ///< What SetKind() said.
    std::uint64_t offset = 0;
    std::span<std::byte> content;
  };
  static constexpr std::size_t kAlignment = 4096;

  using Work = std::function<Status(const Buffer&)>;
  struct Shape {
    std::size_t buffers;
    unsigned workers;
  };

  /// `make_worker` runs on each worker's thread and gives what it does; `done` runs on the caller's. What either says
  /// but OK is what all calls say from then on.
  HashedRing(Shape shape, const std::function<Work()>& make_worker, Work done);
  HashedRing(const HashedRing&) = delete;
  HashedRing& operator=(const HashedRing&) = delete;
  ~HashedRing();

  Status Write(std::span<const std::byte> bytes);
  /// As ImageStream::Fill, but that `read`, which outlives it, may be called until AwaitFilled() returns: what the
  /// workers read need not be copied, and there are several of them.
  Status Fill(std::uint64_t size, const engine::ReadPiece& read, const engine::PassedOn& passed_on);
  Status AwaitFilled();
  /// Of what is written from here on, which begins a buffer.
  Status SetKind(int kind);
  /// Waits until all that was written is done.
  Status Flush();
  /// That were written.
  std::uint64_t bytes() const { return bytes_; }
  /// So many of them, from the beginning, are known to be done with.
  std::uint64_t done_bytes() const { return done_bytes_; }

  void BeginMember() { in_member_ = true; }
  void EndMember();
  /// MemberDigest of what was written between the two, for each time.
  Result<std::vector<std::string>> Digests();

 private:
  struct Piece {  // of a member, in one buffer's content
    std::size_t begin;
    std::size_t end;
    bool last;
  };
  struct Gap {  // in a buffer's content, to be filled from `offset` of what `read` reads
    const engine::ReadPiece* read;
    std::uint64_t offset;
    std::span<std::byte> target;
  };
  struct FreeAligned {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  struct Slot {
    std::unique_ptr<std::byte[], FreeAligned> memory;
    Buffer buffer;
    std::vector<Piece> pieces;
    std::vector<Gap> gaps;
    Status status;
    bool filled = false;  // guarded by mutex_, like the next
    bool worked = false;
    bool hashed = false;
  };

  Status Begin();  // current_ is a free slot
  // Room in current_ that is content from now on.
  std::span<std::byte> Extend(std::uint64_t most_bytes);
  static Status FillGaps(Slot& slot);
  Status Submit();  // current_ goes on its way
  Status TakeBack();
  Piece& LatestPiece();
  bool OldestIsReady() const;
  void RunWorker(const std::function<Work()>& make_worker);
  void Hash();
  Slot& At(std::uint64_t number) { return slots_[number % slots_.size()]; }

  const Work done_;
  std::vector<Slot> slots_;
  Slot* current_ = nullptr;  // the caller's, being filled
  int kind_ = 0;
  bool in_member_ = false;
  std::uint64_t bytes_ = 0;
  std::uint64_t done_bytes_ = 0;
  std::uint64_t taken_back_ = 0;  // slots that are free again

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable ready_;
  std::uint64_t submitted_ = 0;  // guarded by mutex_, like the rest; numbers of slots
  std::uint64_t taken_ = 0;      // by workers
  bool stop_ = false;
  std::vector<std::string> digests_;
  std::vector<std::jthread> threads_;
};

}  // namespace stasis::archive
