// io_uring(7): rings with nothing under way.
//
// State    by the kernel's own structures (io_uring_state.h): set-up flags, positions, what is registered, requests
//          that are under way; the ring's memory by a mapping of ours
// Image    FD_EXT in files.img; the rest, with the memory, in stasis-io-uring.img, an image of our own: CRIU cannot
//          restore such a checkpoint, and says so
// Restore  io_uring_restore.cc
// Lost     processors that its workers were bound to (IORING_REGISTER_IOWQ_AFF), which cost time, not results
// Refused  by name, in io_uring_state.cc. Requests that do not end while the dump waits for them
// Source   io_uring(7), io_uring_setup(2), io_uring/memmap.c; tested on 6.18
// Rule     IORING_SETUP_ATTACH_WQ shares a thread that polls, and without one nothing (Linux 5.12).
// Rule     A ring can only be mapped as a whole (io_region_mmap(), Linux 6.14).
// Rule     A ring's pages are there from when it is mapped until it is unmapped, also in a child: two mappings show
//          the same ring exactly if they show the same frame.
#include "engine/files/io_uring.h"

#include <absl/strings/cord.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/io_uring_state.h"
#include "engine/memory/page_size.h"

namespace stasis::engine {
namespace {

constexpr std::uint64_t kFrame = (1ull << 55) - 1, kPresent = 1ull << 63;  // proc_pid_pagemap(5)
constexpr const char* kBusy = "stasis/busy-ring";

bool Owns(const OpenFile& file) { return file.link == kRingLink; }

// The reader, and the files of the tree by what the kernel calls them.
struct Rings {
  RingReader reader;
  std::map<KernelAddress, const OpenFile*> files, eventfds;
  std::set<std::pair<pid_t, std::uint32_t>> handles = {};  // that are told of, by thread and index

  static Result<Rings*> Of(FileDumpContext& context) {
    std::shared_ptr<void>& known = context.Found()["io_uring"];
    if (known == nullptr) {
      ASSIGN_OR_RETURN(RingReader reader, RingReader::Create());
      auto rings =
          std::make_shared<Rings>(Rings{.reader = std::move(reader), .files = {}, .eventfds = {}});
      for (const OpenFile& file : context.files()) {
        ASSIGN_OR_RETURN(const KernelAddress at,
                         rings->reader.memory().FileOf(file.borrowed.get()));
        rings->files[at] = &file;
        if (file.link != "anon_inode:[eventfd]") continue;
        ASSIGN_OR_RETURN(const KernelAddress counter, rings->reader.EventfdOf(file.borrowed.get()));
        rings->eventfds[counter] = &file;
      }
      known = std::move(rings);
    }
    return static_cast<Rings*>(known.get());
  }

  Result<const OpenFile*> Find(const std::map<KernelAddress, const OpenFile*>& among,
                               KernelAddress file, std::string_view what) const {
    const auto found = among.find(file);
    if (found != among.end()) return found->second;
    return Unimplemented(std::string(what) + " is open nowhere else in the tree");
  }
};

// ---- dump ----

Status SetLayout(const RingReader& reader, const RingState& state, image::IoUringLayout& layout) {
  using Layout = image::IoUringLayout;
  const auto put = [&](std::string_view member, auto set) -> Status {
    ASSIGN_OR_RETURN(const std::uint32_t place, reader.PlaceInRings(member));
    (layout.*set)(place);
    return OkStatus();
  };
  RETURN_IF_ERROR(put("sq.head", &Layout::set_sq_head));
  RETURN_IF_ERROR(put("sq.tail", &Layout::set_sq_tail));
  RETURN_IF_ERROR(put("sq_ring_mask", &Layout::set_sq_mask));
  RETURN_IF_ERROR(put("sq_ring_entries", &Layout::set_sq_count));
  RETURN_IF_ERROR(put("sq_flags", &Layout::set_sq_flags));
  RETURN_IF_ERROR(put("sq_dropped", &Layout::set_sq_dropped));
  RETURN_IF_ERROR(put("cq.head", &Layout::set_cq_head));
  RETURN_IF_ERROR(put("cq.tail", &Layout::set_cq_tail));
  RETURN_IF_ERROR(put("cq_ring_mask", &Layout::set_cq_mask));
  RETURN_IF_ERROR(put("cq_ring_entries", &Layout::set_cq_count));
  RETURN_IF_ERROR(put("cq_overflow", &Layout::set_cq_overflow));
  RETURN_IF_ERROR(put("cqes", &Layout::set_cq_entries));
  RETURN_IF_ERROR(put("cq_flags", &Layout::set_cq_flags));
  layout.set_sq_array(static_cast<std::uint32_t>(state.sq_array));
  return OkStatus();
}

// As many as the program may map.
void SetSizes(const RingState& state, image::IoUringEntry& ring) {
  const bool large = (state.setup_flags & IORING_SETUP_CQE32) != 0;
  const bool large_entries = (state.setup_flags & IORING_SETUP_SQE128) != 0;
  const std::uint64_t completions =
      ring.layout().cq_entries() + std::uint64_t{state.cq_entries} * (large ? 32 : 16);
  const std::uint64_t array =
      state.sq_array == 0 ? 0 : state.sq_array + std::uint64_t{state.sq_entries} * 4;
  ring.set_ring_bytes(static_cast<std::uint32_t>(std::max(completions, array)));
  ring.set_entries_bytes(state.sq_entries * (large_entries ? 128 : 64));
}

// A new ring gets there by submissions, of which each completes once or, where the program has known that, not at all.
Status CheckPositions(const RingState& state) {
  const std::uint32_t more = state.cq_tail - state.sq_head;
  if (TimeToReach(state.sq_head, state.sq_entries) > kMostTime) {
    return Unimplemented("a ring of " + std::to_string(state.sq_entries) +
                         " entries that has taken " + std::to_string(state.sq_head) +
                         " requests cannot be checkpointed: to restore it would take too long");
  }
  if (more != 0 && more < 0x8000'0000) {
    return Unimplemented("a ring with more completions than requests cannot be checkpointed");
  }
  if (more != 0 && !state.drain_disabled) {
    return Unimplemented("a ring with less completions than requests cannot be checkpointed");
  }
  return OkStatus();
}

Status SetRegistered(const RingState& state, const Rings& rings, FileDumpContext& context,
                     image::IoUringEntry& ring) {
  if (state.eventfd != 0) {
    ASSIGN_OR_RETURN(const OpenFile* const eventfd,
                     rings.Find(rings.eventfds, state.eventfd, "its eventfd"));
    ring.set_eventfd(eventfd->id);
    ring.set_eventfd_async(state.eventfd_async);
  }
  for (std::size_t i = 0; i < state.files.size(); ++i) {
    image::IoUringSlot& slot = *ring.add_files();
    if (state.files[i].file == 0) continue;
    ASSIGN_OR_RETURN(
        const OpenFile* const file,
        rings.Find(rings.files, state.files[i].file, "registered file " + std::to_string(i)));
    slot.set_file(file->id);
    slot.set_tag(state.files[i].tag);
  }
  for (const RingBuffer& found : state.buffers) {
    image::IoUringBuffer& buffer = *ring.add_buffers();
    buffer.set_address(found.address);
    buffer.set_length(found.length);
    buffer.set_tag(found.tag);
  }
  for (const RingUser& user : state.users) {
    if (context.ToNamespacePid(user.tid) == 0) {
      return Unimplemented("it is used by a task that is not in the tree");
    }
  }
  ring.mutable_worker_limits()->Add(state.worker_limits.begin(), state.worker_limits.end());
  return OkStatus();
}

// Rings that a thread names by their places in a table of its own.
Status SetHandles(const RingState& state, Rings& rings, FileDumpContext& context,
                  image::IoUringEntry& ring) {
  for (const RingUser& user : state.users) {
    for (const auto& [index, registered] : user.handles) {
      ASSIGN_OR_RETURN(const OpenFile* const other,
                       rings.Find(rings.files, registered, "a ring that a thread has registered"));
      if (!rings.handles.emplace(user.tid, index).second) continue;  // it uses several
      image::IoUringHandle& handle = *ring.add_handles();
      handle.set_thread(static_cast<std::uint32_t>(context.ToNamespacePid(user.tid)));
      handle.set_index(index);
      handle.set_ring(other->id);
    }
  }
  return OkStatus();
}

// What is pinned must still be what the process has there.
Status CheckBuffers(const OpenFile& file, const RingState& state) {
  if (state.buffers.empty()) return OkStatus();
  const std::string path = "/proc/" + std::to_string(file.pid) + "/pagemap";
  ASSIGN_OR_RETURN(const UniqueFd map, OpenAt(AT_FDCWD, path, O_RDONLY));
  for (const RingBuffer& buffer : state.buffers) {
    if (buffer.length == 0) continue;
    std::vector<std::uint64_t> entries(buffer.frames.size());
    RETURN_IF_ERROR(ReadExactAt(map.get(), std::as_writable_bytes(std::span(entries)),
                                buffer.address / kPageBytes * sizeof(std::uint64_t)));
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if ((entries[i] & kPresent) != 0 && (entries[i] & kFrame) == buffer.frames[i]) continue;
      return Unimplemented(
          "a registered buffer that is not the process's memory any more cannot be "
          "checkpointed");
    }
  }
  return OkStatus();
}

// In a tree that runs something is under way now and then, and only what stays so is an obstacle.
Result<RingState> ReadState(const OpenFile& file, RingReader& reader, bool runs) {
  constexpr int kLooks = 50;
  constexpr std::chrono::milliseconds kNap{10};
  for (int i = 1;; ++i) {
    Result<RingState> state = reader.Read(file.borrowed.get());
    const bool is_busy =
        state.ok() ? !state->busy.empty() : state.status().code() == StatusCode::kUnavailable;
    if (!is_busy) return state;
    if (!runs || i == kLooks) {
      Status busy = state.status();
      if (state.ok()) {
        busy =
            Unavailable(state->busy + "; a ring that waits for something cannot be checkpointed");
      }
      busy.SetPayload(kBusy, absl::Cord());
      return busy;
    }
    std::this_thread::sleep_for(kNap);
  }
}

Result<std::string> ReadMemory(const OpenFile& file, const image::IoUringEntry& ring) {
  std::string bytes;
  const auto add = [&](std::uint64_t place, std::uint32_t size) -> Status {
    ASSIGN_OR_RETURN(const RingMemory memory, RingMemory::Map(file.borrowed.get(), place, size));
    bytes.append(reinterpret_cast<const char*>(memory.bytes().data()), size);
    return OkStatus();
  };
  RETURN_IF_ERROR(add(IORING_OFF_SQ_RING, ring.ring_bytes()));
  RETURN_IF_ERROR(add(IORING_OFF_SQES, ring.entries_bytes()));
  return bytes;
}

Status DumpRing(const OpenFile& file, FileDumpContext& context) {
  Result<Rings*> rings = Rings::Of(context);
  if (!rings.ok()) {
    return Unimplemented("an io_uring cannot be checkpointed here: " + Message(rings.status()));
  }
  RingReader& reader = (*rings)->reader;
  ASSIGN_OR_RETURN(const RingState state, ReadState(file, reader, context.only_looks()));
  RETURN_IF_ERROR(CheckPositions(state));
  image::IoUringEntry ring;
  ring.set_id(file.id);
  ring.set_setup_flags(state.setup_flags & ~IORING_SETUP_ATTACH_WQ);
  ring.set_sq_entries(state.sq_entries);
  ring.set_cq_entries(state.cq_entries);
  ring.set_sq_head(state.sq_head);
  ring.set_cq_tail(state.cq_tail);
  ring.set_drain_disabled(state.drain_disabled);
  ring.set_maker(static_cast<std::uint32_t>(file.ns_pid));
  if (state.submitter) {
    const pid_t submitter = context.ToNamespacePid(*state.submitter);
    if (submitter == 0) return Unimplemented("the only thread that may submit to it has ended");
    ring.set_submitter(static_cast<std::uint32_t>(submitter));
  }
  RETURN_IF_ERROR(SetLayout(reader, state, *ring.mutable_layout()));
  SetSizes(state, ring);
  RETURN_IF_ERROR(SetRegistered(state, **rings, context, ring));
  RETURN_IF_ERROR(SetHandles(state, **rings, context, ring));
  RETURN_IF_ERROR(CheckBuffers(file, state));
  if (context.only_looks()) return OkStatus();
  ASSIGN_OR_RETURN(std::string memory, ReadMemory(file, ring));
  std::uint32_t fetched = 0;  // as the program says
  std::memcpy(&fetched, memory.data() + ring.layout().cq_head(), sizeof(fetched));
  if (state.cq_tail - fetched > state.cq_entries) {
    return Unimplemented("a ring with impossible positions cannot be checkpointed");
  }
  context.AddRecord(kRingImage, ring.SerializeAsString(), std::move(memory));
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  image::FileEntry entry = NewEntry(file, image::FD_EXT);
  entry.mutable_ext()->set_id(file.id);
  ASSIGN_OR_RETURN(*entry.mutable_ext()->mutable_fown(), DumpOwner(file, context));
  RETURN_IF_ERROR(Annotate(DumpRing(file, context), NameOf(file)));
  return entry;
}

Result<UniqueFd> Restore(const image::FileEntry&, FileRestoreContext&) {
  return Unimplemented("what a plugin of CRIU has saved cannot be restored");
}

}  // namespace

bool IsBusyRing(const Status& status) { return status.GetPayload(kBusy).has_value(); }

Result<RingMemory> RingMemory::Map(int fd, std::uint64_t place, std::size_t size) {
  void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                          static_cast<off_t>(place));
  if (at == MAP_FAILED) return SyscallError(errno, "mmap of an io_uring");
  return RingMemory({static_cast<std::byte*>(at), size});
}

RingMemory::RingMemory(RingMemory&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

RingMemory::~RingMemory() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

namespace {

// 0: nothing is there.
Result<std::uint64_t> FrameAt(const std::string& process, std::uint64_t address) {
  ASSIGN_OR_RETURN(const UniqueFd map, OpenAt(AT_FDCWD, "/proc/" + process + "/pagemap", O_RDONLY));
  std::uint64_t entry = 0;
  RETURN_IF_ERROR(ReadExactAt(map.get(), std::as_writable_bytes(std::span(&entry, 1)),
                              address / kPageBytes * sizeof(entry)));
  return (entry & kPresent) != 0 ? entry & kFrame : 0;
}

}  // namespace

Result<const OpenFile*> RingFrames::RingOf(std::span<const OpenFile> files, pid_t pid,
                                           const Vma& vma) {
  const bool is_whole = vma.offset == IORING_OFF_SQ_RING || vma.offset == IORING_OFF_CQ_RING ||
                        vma.offset == IORING_OFF_SQES;
  ASSIGN_OR_RETURN(const std::uint64_t frame, FrameAt(std::to_string(pid), vma.start));
  if (frame == 0 || !is_whole) return Unimplemented("a part of an io_uring cannot be checkpointed");
  const auto [rings, is_new] = known_.try_emplace(Shape(vma.offset, vma.size()));
  for (const OpenFile& file : files) {
    if (!is_new || !Owns(file)) continue;
    const Result<RingMemory> memory = RingMemory::Map(file.borrowed.get(), vma.offset, vma.size());
    if (!memory.ok()) continue;  // it is of another size
    const auto at = reinterpret_cast<std::uint64_t>(memory->bytes().data());
    ASSIGN_OR_RETURN(const std::uint64_t ours, FrameAt("thread-self", at));
    if (ours != 0) rings->second[ours] = &file;
  }
  const auto found = rings->second.find(frame);
  if (found != rings->second.end()) return found->second;
  return Unimplemented("an io_uring that is mapped and not open cannot be checkpointed");
}

const FileKind kIoUring = {
    .name = "io_uring", .owns = Owns, .dump = Dump, .type = image::FD_EXT, .restore = Restore};

}  // namespace stasis::engine
