// Threads of one process that make calls at the same time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <list>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/remote_syscalls.h"

namespace stasis::engine {

/// Lets each of `threads` make its calls, as many threads at once as `area` has room for their frames: each
/// needs a processor for a moment only, and on a busy machine waits long for one. Half of them make their calls
/// while the other half's are handed out, and the next are prepared.
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
  struct Group {
    std::list<Caller> callers = {};
    Status begun = {};
    pid_t tid() { return callers.empty() ? 0 : callers.front().remote.tracee().tid(); }
  };
  const auto each_sound = [](Group& group, const auto& step) {
    for (Caller& caller : group.callers) {
      if (caller.made.ok()) caller.made = step(caller);
    }
  };
  const auto start = [&](std::span<Thread> some, auto place) {
    Group group;
    std::vector<MemoryPiece> pieces;
    for (Thread& thread : some) {
      Result<RemoteSyscalls> remote = begin(thread, place(group.callers.size()));
      group.begun = remote.status();
      if (!group.begun.ok()) break;
      Caller& caller = group.callers.emplace_back(thread, *std::move(remote));
      const OneRun how = ask(thread, caller.batch);
      caller.made = caller.batch.Prepare(caller.remote, how, pieces);
    }
    const Status written = WriteMemory(group.tid(), pieces);
    each_sound(group,
               [&](Caller& caller) { return written.ok() ? caller.batch.Launch() : written; });
    return group;
  };
  // What has begun is taken to its end, whatever becomes of the others.
  const auto finish = [&](Group& group) {
    std::vector<MemoryRoom> results;
    each_sound(group, [&](Caller& caller) { return caller.batch.Await(results); });
    const Status read = ReadMemory(group.tid(), results);
    each_sound(group, [&](Caller& caller) { return read.ok() ? caller.batch.Finish() : read; });
    Status worst = group.begun;
    for (Caller& caller : group.callers) {
      const Status status = end(caller.thread, caller.remote, caller.made);
      if (worst.ok()) worst = status;
    }
    return worst;
  };

  const bool has_room = frame_bytes <= RemoteArea::kSlotFrameBytes;
  const unsigned at_once = has_room ? RemoteArea::kSlots / 2 : 1;
  Status worst;
  Group running;
  bool odd = false;
  while (!threads.empty() && worst.ok()) {
    if (!has_room) {  // there is one place only
      worst = finish(running);
      running = {};
      if (!worst.ok()) break;
    }
    const std::span<Thread> some = threads.first(std::min<std::size_t>(threads.size(), at_once));
    Group next = start(some, [&](std::size_t index) {
      return has_room ? area.slot(static_cast<unsigned>(index) + (odd ? at_once : 0))
                      : area.place();
    });
    if (has_room) worst = finish(running);
    if (worst.ok()) worst = next.begun;
    running = std::move(next);
    odd = !odd;
    threads = threads.subspan(some.size());
  }
  const Status last = finish(running);
  return worst.ok() ? last : worst;
}

}  // namespace stasis::engine
