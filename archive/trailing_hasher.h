// Hashes the members of an archive that is being written, on a thread of its own.
//
// The writer is the thread that holds a container frozen, so it must not hash. This thread follows
// it and reads back from the page cache what was written a moment ago: no buffer is copied or
// handed over, and what is hashed is what a reader of the file will see.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/status.h"

namespace stasis::archive {

class TrailingHasher {
 public:
  /// `fd` must stay open and readable until the hasher is gone.
  explicit TrailingHasher(int fd);
  ~TrailingHasher();

  /// A member begins at file offset `offset`; Extend() tells that `length` more bytes of it are
  /// written, and End() that there are no more.
  void Begin(std::uint64_t offset);
  void Extend(std::uint64_t length);
  void End();

  /// Waits for the rest and gives the digests, in the members' order.
  Result<std::vector<std::string>> Finish();

 private:
  struct Member {
    std::uint64_t begin;
    std::uint64_t end;  ///< Grows while the member is written.
    bool whole = false;
  };

  void Run();
  Status HashMember(std::size_t index, std::string& digest);

  const int fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Member> members_;  // guarded by mutex_, like the two below
  bool no_more_ = false;
  bool abandoned_ = false;
  std::vector<std::string> digests_;  // the thread's until it is joined, as is status_
  Status status_;
  std::thread thread_;
};

}  // namespace stasis::archive
