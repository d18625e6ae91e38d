// Where a thread can run for us before there is memory of ours in its process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/proc/maps.h"
#include "engine/tracee/call_place.h"
#include "engine/tracee/tracee.h"

namespace stasis::engine {

/// HomewardCode in a place that is never executed, and room for the signal frame that leads the thread
/// home in one that is never read: should the tracer die, the process loses nothing. What was there is
/// put back.
class Foothold {
 public:
  /// `tracee` is in a ptrace stop. Not in the area that begins at `avoid`: it is about to go.
  static Result<Foothold> Take(const Tracee& tracee, std::uint64_t avoid = 0);
  /// The same, without a look at maps: in `vdso`, and in `stack`, its first program's, where there is one.
  static Result<Foothold> Take(const Tracee& tracee, const Vma& vdso, const Vma* stack);

  static constexpr std::uint64_t kArgumentBytes = 8 << 10;

  Foothold(Foothold&&) = default;
  Foothold& operator=(Foothold&&) = delete;
  ~Foothold();

  /// With kArgumentBytes where there is memory that holds nothing, else without room for arguments.
  const CallPlace& place() const { return place_; }

  /// Puts back what was there. The destructor covers early returns.
  Status Leave();

 private:
  explicit Foothold(UniqueFd memory) : memory_(std::move(memory)) {}
  static Result<UniqueFd> OpenMemory(const Tracee& tracee);
  static Result<Foothold> TakeAt(const Tracee& tracee, UniqueFd memory, std::uint64_t code,
                                 const Vma* stack);
  static Result<CallPlace> ChooseFrame(const Tracee& tracee, int memory_fd, const Vma* stack,
                                       std::size_t size);

  UniqueFd memory_;  // /proc/TID/mem
  CallPlace place_;
  std::vector<std::byte> code_bytes_, data_bytes_;  // what was there
};

}  // namespace stasis::engine
