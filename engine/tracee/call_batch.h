// Many system calls made by one thread, with a single stop where that is possible.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/base/status.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {

/// How a thread may make calls in one run (see RemoteSyscalls::StartAll). `signal` 0: one by one.
struct OneRun {
  int signal = 0;
  std::pair<pid_t, pid_t> ids = {};
  /// Whether seccomp would let the thread make a call, which lies at address `behind`, without us. Empty: it
  /// has no filter.
  std::function<bool(const arch::CallInside& call, std::uint64_t behind)> allowed = {};
};

class CallBatch {
 public:
  /// In the arguments of a call: the address of what it fills.
  static constexpr std::uint64_t kHere =
      0xffff'8000'0000'0001;  // no address, and no number that we pass

  /// A call whose result goes to `take`; `what` must stay, as literals do. An error of it ends the batch as
  /// SyscallError "`what`".
  void Add(std::string_view what, long number, std::initializer_list<std::uint64_t> arguments,
           std::function<void(std::int64_t)> take = {}) {
    AddCall(what, number, arguments, {}, kNoError, [take = std::move(take)](auto result, auto) {
      if (take) take(result);
      return OkStatus();
    });
  }
  /// The same; a call that fails tells nothing.
  void AddOptional(std::string_view what, long number,
                   std::initializer_list<std::uint64_t> arguments,
                   std::function<Status(std::int64_t)> take) {
    AddCall(what, number, arguments, {}, kAnyError,
            [take = std::move(take)](auto result, auto) { return take(result); });
  }
  /// The same; one that fails with error number `tolerated`, if that is not 0, is as good as one that does not.
  void AddChecked(std::string_view what, long number,
                  std::initializer_list<std::uint64_t> arguments, int tolerated,
                  std::function<Status(std::int64_t)> take) {
    AddCall(what, number, arguments, {}, tolerated,
            [take = std::move(take)](auto result, auto) { return take(result); });
  }
  /// A call that fills one T at kHere.
  template <typename T>
  void AddFilling(std::string_view what, long number,
                  std::initializer_list<std::uint64_t> arguments,
                  std::function<void(const T&)> take) {
    AddCall(what, number, arguments, std::vector<std::byte>(sizeof(T)), kNoError,
            [take = std::move(take)](auto, std::span<const std::byte> filled) {
              T value;
              std::memcpy(&value, filled.data(), sizeof(T));
              take(value);
              return OkStatus();
            });
  }

  /// A call that is given `value` at kHere.
  template <typename T>
  void AddGiving(std::string_view what, long number, std::initializer_list<std::uint64_t> arguments,
                 const T& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    AddCall(what, number, arguments, {bytes.begin(), bytes.end()}, kNoError,
            [](auto, auto) { return OkStatus(); });
    gives_ = true;
  }

  /// The same, with a pointer in it: its word at `pointer` is an offset in `value`, and becomes the address there. The
  /// result goes to `take`; a call that fails tells nothing.
  template <typename T>
  void AddPointing(std::string_view what, long number,
                   std::initializer_list<std::uint64_t> arguments, const T& value,
                   std::size_t pointer, std::function<void(std::int64_t)> take) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    AddCall(what, number, arguments, {bytes.begin(), bytes.end()}, kAnyError,
            [take = std::move(take)](auto result, auto) {
              take(result);
              return OkStatus();
            });
    calls_.back().pointer = pointer;
    gives_ = true;
  }

  std::size_t size() const { return calls_.size(); }

  /// Begins to make the calls, in the order in which they were added; another thread may begin meanwhile.
  Status Begin(RemoteSyscalls& remote, const OneRun& how);
  /// Waits for them, and hands out what they gave. The batch can begin anew afterwards.
  Status End();

  /// The same in steps, for threads of one process, whose memory is written and read for all of them at once.
  /// Adds to `pieces` what is to be written there before Launch().
  Status Prepare(RemoteSyscalls& remote, const OneRun& how, std::vector<MemoryPiece>& pieces);
  Status Launch();
  /// Waits, and adds to `results` what is to be read from there before Finish().
  Status Await(std::vector<MemoryRoom>& results);
  Status Finish();

 private:
  using Take = std::function<Status(std::int64_t result, std::span<const std::byte> filled)>;
  struct Call {
    std::string_view what;
    long number;
    std::array<std::uint64_t, 6> arguments;
    std::vector<std::byte> here;  // what lies at kHere before the call
    int tolerated;                // error number, or one of those below
    Take take;
    std::optional<std::size_t> pointer = {};  // where in `here` an offset becomes an address
  };
  static constexpr int kNoError = 0, kAnyError = -1;
  // Those that are made together: calls [first, last), their table at `at`, what they fill behind it.
  struct Piece {
    std::size_t first = 0, last = 0;
    std::uint64_t at = 0;
    std::vector<std::byte> bytes = {};
    bool in_one_run = false;
  };

  void AddCall(std::string_view what, long number, std::initializer_list<std::uint64_t> arguments,
               std::vector<std::byte> here, int tolerated, Take take);
  static bool Tolerates(const Call& call, int error);
  Status PreparePiece(std::size_t first, std::vector<MemoryPiece>& pieces);
  Status BeginPiece(std::size_t first);
  Status FinishPiece();
  Status EndPiece();
  Status MakeOneByOne();
  bool AreMade() const;

  std::vector<Call> calls_;
  bool gives_ = false;  // some call looks at what lies at its kHere
  RemoteSyscalls* remote_ = nullptr;
  OneRun how_;
  Piece piece_;
};

}  // namespace stasis::engine
