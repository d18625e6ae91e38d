// Threads of one process that make calls at the same time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <list>
#include <span>
#include <utility>

#include "engine/base/status.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {

/// Lets each of `threads` make its calls, as many threads at once as `area` has room for their frames: each
/// needs a processor for a moment only, and on a busy machine waits long for one.
/// `begin(thread, place)` gives the thread's RemoteSyscalls, `ask(thread, batch)` adds its calls and says how
/// they may be made (OneRun), `end(thread, remote, made)` gives the thread back, whatever its calls came to,
/// and has the last word on that. The first error; no thread begins after one that could not.
template <typename Thread, typename Begin, typename Ask, typename End>
Status CallTogether(std::span<Thread> threads, const RemoteArea& area, std::size_t frame_bytes,
                    const Begin& begin, const Ask& ask, const End& end) {
  struct Caller {
    Thread& thread;
    RemoteSyscalls remote;
    CallBatch batch = {};
    Status made = {};
  };
  const bool has_room = frame_bytes <= RemoteArea::kSlotFrameBytes;
  const std::size_t at_once = has_room ? RemoteArea::kSlots : 1;
  Status worst;
  while (!threads.empty() && worst.ok()) {
    std::list<Caller> callers;
    const std::span<Thread> some = threads.first(std::min(threads.size(), at_once));
    for (Thread& thread : some) {
      const auto slot = static_cast<unsigned>(callers.size());
      Result<RemoteSyscalls> remote = begin(thread, has_room ? area.slot(slot) : area.place());
      worst = remote.status();
      if (!worst.ok()) break;
      Caller& caller = callers.emplace_back(thread, *std::move(remote));
      const OneRun how = ask(thread, caller.batch);
      caller.made = caller.batch.Begin(caller.remote, how);
    }
    // What has begun is taken to its end, whatever becomes of the others.
    for (Caller& caller : callers) {
      if (caller.made.ok()) caller.made = caller.batch.End();
      const Status status = end(caller.thread, caller.remote, std::move(caller.made));
      if (worst.ok()) worst = status;
    }
    threads = threads.subspan(some.size());
  }
  return worst;
}

}  // namespace stasis::engine
