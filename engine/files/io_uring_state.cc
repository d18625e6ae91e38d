// Source  io_uring/{io_uring,register,rsrc,tctx,eventfd,filetable,kbuf,napi}.c, include/linux/io_uring_types.h;
//         tested on 6.18
// Rule    Each request takes a reference on the io_uring context of its task until it is freed: the sum of the counter
//         `inflight` less `cached_refs`, which are taken in advance, is how many there are, in all rings of the task.
//         (io_task_refs_refill(), io_put_task()). Not counted are messages from other rings, which wait in `work_llist`.
// Rule    What is registered is told from a table of struct io_rsrc_node (Linux 6.13); the lowest bits of file_ptr are
//         flags. Before, it was told otherwise: then only rings without it are known.
// Rule    A buffer is pinned page by page: the program may have unmapped it since, and then it is in nobody's memory.
// Rule    All that can be registered has a number below IORING_REGISTER_LAST. A kernel with more may have what we do not
//         look for.
// Rule    A struct page lies in one array, by the number of its frame (CONFIG_SPARSEMEM_VMEMMAP). Where that begins is
//         told by a page of our own.
#include "engine/files/io_uring_state.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

#include "engine/base/io.h"
#include "engine/memory/page_size.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kLastRegistered = 36;  // IORING_REGISTER_LAST of Linux 6.18
constexpr std::size_t kMostUsers = 1 << 16, kMostSlots = 1 << 20;
constexpr std::uint64_t kNapiInactive = 255;  // IO_URING_NAPI_TRACKING_INACTIVE
constexpr std::uint64_t kFileFlags = 7;       // in io_rsrc_node.file_ptr

// Which Debian 12's headers do not have.
constexpr std::uint32_t kNoMmap = 1u << 14, kRegisteredOnly = 1u << 15, kNoSqArray = 1u << 16,
                        kHybridPoll = 1u << 17, kMixedCompletions = 1u << 18;

constexpr std::uint32_t kRestored =
    IORING_SETUP_IOPOLL | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_ATTACH_WQ |
    IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN |
    IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SQE128 | IORING_SETUP_CQE32 |
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | kNoSqArray;

struct NamedFlag {
  std::uint32_t flag;
  const char* name;
};
constexpr NamedFlag kRefusedFlags[] = {
    {IORING_SETUP_SQPOLL, "IORING_SETUP_SQPOLL"},
    {kNoMmap, "IORING_SETUP_NO_MMAP"},
    {kRegisteredOnly, "IORING_SETUP_REGISTERED_FD_ONLY"},
    {kHybridPoll, "IORING_SETUP_HYBRID_IOPOLL"},
    {kMixedCompletions, "IORING_SETUP_CQE_MIXED"},
};

// Fields that are not 0 when something is there that is not restored. What a kernel does not have, none of its rings
// does; `must_be`: it has been there since the oldest that we know.
struct Unwanted {
  const char* path;
  const char* what;
  bool must_be = false;
};
constexpr Unwanted kUnwanted[] = {
    {"personalities.xa_head", "registered credentials (IORING_REGISTER_PERSONALITY)", true},
    {"io_bl_xa.xa_head", "provided buffers", true},
    {"io_bl", "provided buffers"},
    {"restricted", "restrictions (IORING_REGISTER_RESTRICTIONS)"},
    {"restrictions.registered", "restrictions (IORING_REGISTER_RESTRICTIONS)", true},
    {"compat", "32-bit code"},
    {"sq_data", "a thread that polls (IORING_SETUP_SQPOLL)", true},
    {"zcrx_ctxs.xa_head", "a queue of a network interface (IORING_REGISTER_ZCRX_IFQ)"},
    {"ifq", "a queue of a network interface (IORING_REGISTER_ZCRX_IFQ)"},
    {"param_region.nr_pages", "memory for arguments (IORING_REGISTER_MEM_REGION)"},
    {"cq_wait_arg", "memory for arguments of waits"},
    {"napi_enabled", "busy polling (IORING_REGISTER_NAPI)"},
};

Status Refuse(std::string_view what) {
  return Unimplemented(std::string(what) + " of io_uring cannot be checkpointed");
}

// A ring of ours with one page registered, which has `frame`.
struct OurPage {
  UniqueFd ring;
  void* memory = MAP_FAILED;
  std::uint64_t frame = 0;

  OurPage() = default;
  OurPage(const OurPage&) = delete;
  OurPage& operator=(const OurPage&) = delete;
  ~OurPage() {
    ring.Reset();
    if (memory != MAP_FAILED) ::munmap(memory, kPageBytes);
  }

  Status Make() {
    io_uring_params parameters = {};
    ring.Reset(static_cast<int>(::syscall(SYS_io_uring_setup, 1, &parameters)));
    if (!ring) return SyscallError(errno, "io_uring_setup");
    memory = ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) return SyscallError(errno, "mmap");
    const iovec all = {memory, kPageBytes};
    if (::syscall(SYS_io_uring_register, ring.get(), IORING_REGISTER_BUFFERS, &all, 1) != 0) {
      return SyscallError(errno, "IORING_REGISTER_BUFFERS");
    }
    ASSIGN_OR_RETURN(const UniqueFd map, OpenAt(AT_FDCWD, "/proc/thread-self/pagemap", O_RDONLY));
    std::uint64_t entry = 0;
    RETURN_IF_ERROR(ReadExactAt(map.get(), std::as_writable_bytes(std::span(&entry, 1)),
                                reinterpret_cast<std::uint64_t>(memory) / kPageBytes * 8));
    frame = entry & ((1ull << 55) - 1);  // proc_pid_pagemap(5)
    return frame != 0 ? OkStatus() : PermissionDenied("frames of pages take CAP_SYS_ADMIN");
  }
};

}  // namespace

Result<RingReader> RingReader::Create() {
  ASSIGN_OR_RETURN(KernelMemory memory, KernelMemory::Open());
  ASSIGN_OR_RETURN(const std::uint32_t last, memory.btf().Constant("IORING_REGISTER_LAST"));
  if (last > kLastRegistered) {
    return FailedPrecondition("this kernel's io_uring is newer than what we know");
  }
  return RingReader(std::move(memory));
}

Result<std::uint32_t> RingReader::PlaceInRings(std::string_view member) const {
  ASSIGN_OR_RETURN(const KernelBtf::Field field, memory_.btf().Find("io_rings", member));
  return field.offset;
}

Result<KernelAddress> RingReader::EventfdOf(int fd) {
  ASSIGN_OR_RETURN(const KernelAddress file, memory_.FileOf(fd));
  return memory_.Number(file, "file", "private_data");
}

Result<RingState> RingReader::Read(int fd) {
  ASSIGN_OR_RETURN(const KernelAddress file, memory_.FileOf(fd));
  ASSIGN_OR_RETURN(ring_, memory_.Number(file, "file", "private_data"));
  RingState state;
  const auto put = [this](std::string_view path, std::uint32_t& to) -> Status {
    ASSIGN_OR_RETURN(const std::uint64_t value, Get(path));
    to = static_cast<std::uint32_t>(value);
    return OkStatus();
  };
  RETURN_IF_ERROR(put("flags", state.setup_flags));
  RETURN_IF_ERROR(put("sq_entries", state.sq_entries));
  RETURN_IF_ERROR(put("cq_entries", state.cq_entries));
  RETURN_IF_ERROR(CheckRestorable(state));
  RETURN_IF_ERROR(put("cached_sq_head", state.sq_head));
  RETURN_IF_ERROR(put("cached_cq_tail", state.cq_tail));
  ASSIGN_OR_RETURN(const std::uint64_t drain_disabled, Get("drain_disabled"));
  state.drain_disabled = drain_disabled != 0;
  if ((state.setup_flags & kNoSqArray) == 0) {
    ASSIGN_OR_RETURN(const KernelAddress array, Get("sq_array"));
    ASSIGN_OR_RETURN(const KernelAddress rings, Get("rings"));
    state.sq_array = array - rings;
  }
  if ((state.setup_flags & IORING_SETUP_SINGLE_ISSUER) != 0) {
    ASSIGN_OR_RETURN(const KernelAddress task, Get("submitter_task"));
    if (task != 0) {
      ASSIGN_OR_RETURN(state.submitter, NumberOf(task));
    }
  }
  RETURN_IF_ERROR(ReadEventfd(state));
  RETURN_IF_ERROR(ReadFiles(state));
  RETURN_IF_ERROR(ReadBuffers(state));
  RETURN_IF_ERROR(ReadUsers(state));
  ASSIGN_OR_RETURN(state.busy, WhatIsBusy(state));
  return state;
}

Status RingReader::CheckRestorable(const RingState& state) {
  for (const NamedFlag& flag : kRefusedFlags) {
    if ((state.setup_flags & flag.flag) != 0) return Refuse(flag.name);
  }
  if ((state.setup_flags & ~kRestored) != 0) {
    return Refuse("set-up flags " + std::to_string(state.setup_flags & ~kRestored));
  }
  for (const Unwanted& unwanted : kUnwanted) {
    const Result<std::uint64_t> value =
        unwanted.must_be || memory_.Has("io_ring_ctx", unwanted.path) ? Get(unwanted.path) : 0;
    RETURN_IF_ERROR(value.status());
    if (*value != 0) return Refuse(unwanted.what);
  }
  if (memory_.Has("io_ring_ctx", "napi_track_mode")) {
    ASSIGN_OR_RETURN(const std::uint64_t mode, Get("napi_track_mode"));
    if (mode != kNapiInactive) return Refuse("busy polling (IORING_REGISTER_NAPI)");
  }
  if (memory_.Has("io_ring_ctx", "clockid")) {
    ASSIGN_OR_RETURN(const std::uint64_t clock, Get("clockid"));
    if (clock != CLOCK_MONOTONIC) return Refuse("another clock (IORING_REGISTER_CLOCK)");
  }
  return OkStatus();
}

Result<bool> RingReader::ListIsEmpty(KernelAddress head) {
  ASSIGN_OR_RETURN(const auto next, memory_.Value<KernelAddress>(head));
  return next == head;
}

// What is to be seen of the ring itself besides the requests of its users.
Result<std::string> RingReader::WhatIsBusy(const RingState& state) {
  std::int64_t requests = 0;
  for (const RingUser& user : state.users) requests += user.under_way;
  if (requests != 0) return "requests are under way: " + std::to_string(requests);
  // Several of them are in kernels of some years only.
  for (const char* const path :
       {"work_llist.first", "retry_llist.first", "fallback_llist.first", "iopoll_list.first",
        "waitid_list.first", "futex_list.first", "drain_active", "nr_drained"}) {
    if (!memory_.Has("io_ring_ctx", path)) continue;
    ASSIGN_OR_RETURN(const std::uint64_t value, Get(path));
    if (value != 0) return std::string("work is left to be done (" + std::string(path) + ")");
  }
  for (const char* const path : {"cq_overflow_list", "defer_list", "timeout_list"}) {
    ASSIGN_OR_RETURN(const KernelAddress list, memory_.AddressOf(ring_, "io_ring_ctx", path));
    ASSIGN_OR_RETURN(const bool is_empty, ListIsEmpty(list));
    if (!is_empty) return std::string("something waits (" + std::string(path) + ")");
  }
  ASSIGN_OR_RETURN(const std::uint64_t check, Get("check_cq"));
  if (check != 0) return std::string("completions have no room in its queue");
  ASSIGN_OR_RETURN(const KernelAddress rings, Get("rings"));
  ASSIGN_OR_RETURN(const std::uint64_t head, memory_.Number(rings, "io_rings", "sq.head"));
  ASSIGN_OR_RETURN(const std::uint64_t tail, memory_.Number(rings, "io_rings", "cq.tail"));
  const bool is_told = head == state.sq_head && tail == state.cq_tail;
  return is_told ? std::string() : std::string("its positions are not told yet");
}

// As we see it.
Result<pid_t> RingReader::NumberOf(KernelAddress task) {
  const auto pid_of = [this](KernelAddress of) {
    return memory_.Number(of, "task_struct", "thread_pid");
  };
  ASSIGN_OR_RETURN(const KernelAddress us, memory_.Current());
  ASSIGN_OR_RETURN(const KernelAddress our_pid, pid_of(us));
  ASSIGN_OR_RETURN(const std::uint64_t our_level, memory_.Number(our_pid, "pid", "level"));
  ASSIGN_OR_RETURN(const KernelAddress pid, pid_of(task));
  if (pid == 0) return 0;  // it has ended
  ASSIGN_OR_RETURN(const std::uint64_t level, memory_.Number(pid, "pid", "level"));
  if (level < our_level) return 0;
  ASSIGN_OR_RETURN(const std::uint32_t size, memory_.btf().SizeOf("upid"));
  ASSIGN_OR_RETURN(const KernelAddress ours, memory_.AddressOf(our_pid, "pid", "numbers"));
  ASSIGN_OR_RETURN(const KernelAddress its, memory_.AddressOf(pid, "pid", "numbers"));
  const std::uint64_t at = our_level * size;
  ASSIGN_OR_RETURN(const std::uint64_t our_space, memory_.Number(ours + at, "upid", "ns"));
  ASSIGN_OR_RETURN(const std::uint64_t its_space, memory_.Number(its + at, "upid", "ns"));
  if (our_space != its_space) return 0;
  ASSIGN_OR_RETURN(const std::uint64_t number, memory_.Number(its + at, "upid", "nr"));
  return static_cast<pid_t>(number);
}

Result<RingUser> RingReader::ReadUser(KernelAddress task) {
  RingUser user;
  ASSIGN_OR_RETURN(user.tid, NumberOf(task));
  ASSIGN_OR_RETURN(const KernelAddress context, memory_.Number(task, "task_struct", "io_uring"));
  if (context == 0) return Unavailable("a task that uses it ends just now");
  ASSIGN_OR_RETURN(const std::uint64_t cached,
                   memory_.Number(context, "io_uring_task", "cached_refs"));
  ASSIGN_OR_RETURN(const KernelAddress counter,
                   memory_.AddressOf(context, "io_uring_task", "inflight"));
  ASSIGN_OR_RETURN(const std::int64_t taken, memory_.SumOf(counter));
  user.under_way = taken - static_cast<std::int32_t>(cached);
  ASSIGN_OR_RETURN(const KernelBtf::Field table,
                   memory_.btf().Find("io_uring_task", "registered_rings"));
  std::vector<KernelAddress> files(table.size / sizeof(KernelAddress));
  RETURN_IF_ERROR(memory_.Read(context + table.offset, std::as_writable_bytes(std::span(files))));
  for (std::uint32_t i = 0; i < files.size(); ++i) {
    if (files[i] != 0) user.handles.emplace_back(i, files[i]);
  }
  return user;
}

Status RingReader::ReadUsers(RingState& state) {
  ASSIGN_OR_RETURN(const KernelAddress list, memory_.AddressOf(ring_, "io_ring_ctx", "tctx_list"));
  ASSIGN_OR_RETURN(const KernelBtf::Field link, memory_.btf().Find("io_tctx_node", "ctx_node"));
  ASSIGN_OR_RETURN(auto at, memory_.Value<KernelAddress>(list));
  while (at != list) {
    if (state.users.size() == kMostUsers) return Internal("io_uring: a list without an end");
    ASSIGN_OR_RETURN(const KernelAddress task,
                     memory_.Number(at - link.offset, "io_tctx_node", "task"));
    ASSIGN_OR_RETURN(RingUser user, ReadUser(task));
    state.users.push_back(std::move(user));
    ASSIGN_OR_RETURN(at, memory_.Value<KernelAddress>(at));
  }
  ASSIGN_OR_RETURN(const std::uint64_t limits_set, Get("iowq_limits_set"));
  if (limits_set == 0) return OkStatus();
  ASSIGN_OR_RETURN(const KernelAddress limits,
                   memory_.AddressOf(ring_, "io_ring_ctx", "iowq_limits"));
  ASSIGN_OR_RETURN(const auto both, (memory_.Value<std::array<std::uint32_t, 2>>(limits)));
  state.worker_limits.assign(both.begin(), both.end());
  return OkStatus();
}

Status RingReader::ReadEventfd(RingState& state) {
  ASSIGN_OR_RETURN(const KernelAddress registered, Get("io_ev_fd"));
  if (registered == 0) return OkStatus();
  ASSIGN_OR_RETURN(state.eventfd, memory_.Number(registered, "io_ev_fd", "cq_ev_fd"));
  ASSIGN_OR_RETURN(const std::uint64_t async,
                   memory_.Number(registered, "io_ev_fd", "eventfd_async"));
  state.eventfd_async = async != 0;
  return OkStatus();
}

// The nodes of a struct io_rsrc_data at `path`.
Status RingReader::ReadFiles(RingState& state) {
  if (!memory_.Has("io_ring_ctx", "file_table.data.nodes")) {
    ASSIGN_OR_RETURN(const std::uint64_t count, Get("nr_user_files"));
    return count == 0 ? OkStatus() : Refuse("before Linux 6.13, registered files");
  }
  ASSIGN_OR_RETURN(const std::uint64_t count, Get("file_table.data.nr"));
  if (count == 0) return OkStatus();
  if (count > kMostSlots) return Refuse("a table of so many files");
  ASSIGN_OR_RETURN(const std::uint64_t first, Get("file_alloc_start"));
  ASSIGN_OR_RETURN(const std::uint64_t end, Get("file_alloc_end"));
  if (first != 0 || end != count)
    return Refuse("a range of slots (IORING_REGISTER_FILE_ALLOC_RANGE)");
  ASSIGN_OR_RETURN(const KernelAddress table, Get("file_table.data.nodes"));
  std::vector<KernelAddress> nodes(count);
  RETURN_IF_ERROR(memory_.Read(table, std::as_writable_bytes(std::span(nodes))));
  for (const KernelAddress node : nodes) {
    RingSlot& slot = state.files.emplace_back();
    if (node == 0) continue;
    ASSIGN_OR_RETURN(const std::uint64_t file, memory_.Number(node, "io_rsrc_node", "file_ptr"));
    slot.file = file & ~kFileFlags;
    ASSIGN_OR_RETURN(slot.tag, memory_.Number(node, "io_rsrc_node", "tag"));
  }
  return OkStatus();
}

Status RingReader::ReadBuffers(RingState& state) {
  if (!memory_.Has("io_ring_ctx", "buf_table.nodes")) {
    ASSIGN_OR_RETURN(const std::uint64_t count, Get("nr_user_bufs"));
    return count == 0 ? OkStatus() : Refuse("before Linux 6.13, registered buffers");
  }
  ASSIGN_OR_RETURN(const std::uint64_t count, Get("buf_table.nr"));
  if (count == 0) return OkStatus();
  if (count > kMostSlots) return Refuse("a table of so many buffers");
  ASSIGN_OR_RETURN(const KernelAddress table, Get("buf_table.nodes"));
  std::vector<KernelAddress> nodes(count);
  RETURN_IF_ERROR(memory_.Read(table, std::as_writable_bytes(std::span(nodes))));
  const KernelAddress ring = ring_;
  RETURN_IF_ERROR(FindFrames());
  ring_ = ring;
  for (const KernelAddress node : nodes) {
    RingBuffer buffer;
    if (node != 0) {
      ASSIGN_OR_RETURN(buffer, ReadBuffer(node));
    }
    state.buffers.push_back(std::move(buffer));
  }
  return OkStatus();
}

Result<RingBuffer> RingReader::ReadBuffer(KernelAddress node) {
  RingBuffer found;
  ASSIGN_OR_RETURN(found.tag, memory_.Number(node, "io_rsrc_node", "tag"));
  ASSIGN_OR_RETURN(const KernelAddress buffer, memory_.Number(node, "io_rsrc_node", "buf"));
  if (buffer == 0) return found;
  if (memory_.Has("io_mapped_ubuf", "is_kbuf")) {
    ASSIGN_OR_RETURN(const std::uint64_t of_kernel,
                     memory_.Number(buffer, "io_mapped_ubuf", "is_kbuf"));
    if (of_kernel != 0) return Refuse("a registered buffer that belongs to a driver");
  }
  ASSIGN_OR_RETURN(found.address, memory_.Number(buffer, "io_mapped_ubuf", "ubuf"));
  ASSIGN_OR_RETURN(found.length, memory_.Number(buffer, "io_mapped_ubuf", "len"));
  RETURN_IF_ERROR(ReadFrames(buffer, found));
  return found;
}

// A bio_vec tells of pages that follow each other, in the array of all.
Status RingReader::ReadFrames(KernelAddress buffer, RingBuffer& found) {
  ASSIGN_OR_RETURN(const std::uint64_t count, memory_.Number(buffer, "io_mapped_ubuf", "nr_bvecs"));
  ASSIGN_OR_RETURN(KernelAddress at, memory_.AddressOf(buffer, "io_mapped_ubuf", "bvec"));
  ASSIGN_OR_RETURN(const std::uint32_t size, memory_.btf().SizeOf("bio_vec"));
  std::uint64_t address = found.address;
  const std::uint64_t end = found.address + found.length;
  for (std::uint64_t i = 0; i < count; ++i, at += size) {
    ASSIGN_OR_RETURN(const std::uint64_t page, memory_.Number(at, "bio_vec", "bv_page"));
    ASSIGN_OR_RETURN(const std::uint64_t length, memory_.Number(at, "bio_vec", "bv_len"));
    ASSIGN_OR_RETURN(const std::uint64_t offset, memory_.Number(at, "bio_vec", "bv_offset"));
    if ((page - *first_page_) % page_bytes_ != 0 || (address - offset) % kPageBytes != 0) {
      return Refuse("a registered buffer of an unknown form");
    }
    const std::uint64_t first = (page - *first_page_) / page_bytes_ + offset / kPageBytes;
    const std::uint64_t pages = (offset % kPageBytes + length + kPageBytes - 1) / kPageBytes;
    // A piece that ends within a page is the last.
    for (std::uint64_t n = 0; n < pages; ++n) found.frames.push_back(first + n);
    address += length;
    if (address < end && address % kPageBytes != 0) {
      return Refuse("a registered buffer of an unknown form");
    }
  }
  return address == end ? OkStatus() : Refuse("a registered buffer of an unknown form");
}

Status RingReader::FindFrames() {
  if (first_page_) return OkStatus();
  ASSIGN_OR_RETURN(const std::uint32_t size, memory_.btf().SizeOf("page"));
  OurPage ours;
  RETURN_IF_ERROR(ours.Make());
  ASSIGN_OR_RETURN(const KernelAddress file, memory_.FileOf(ours.ring.get()));
  ASSIGN_OR_RETURN(ring_, memory_.Number(file, "file", "private_data"));
  ASSIGN_OR_RETURN(const KernelAddress table, Get("buf_table.nodes"));
  ASSIGN_OR_RETURN(const auto node, memory_.Value<KernelAddress>(table));
  ASSIGN_OR_RETURN(const KernelAddress buffer, memory_.Number(node, "io_rsrc_node", "buf"));
  ASSIGN_OR_RETURN(const KernelAddress piece, memory_.AddressOf(buffer, "io_mapped_ubuf", "bvec"));
  ASSIGN_OR_RETURN(const std::uint64_t page, memory_.Number(piece, "bio_vec", "bv_page"));
  ASSIGN_OR_RETURN(const std::uint64_t offset, memory_.Number(piece, "bio_vec", "bv_offset"));
  page_bytes_ = size;
  first_page_ = page + offset / kPageBytes * size - ours.frame * size;
  return OkStatus();
}

}  // namespace stasis::engine
