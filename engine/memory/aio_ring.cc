// State    the ring of events: how many, those that nobody has fetched, where it goes on
// Image    AioRingEntry of mm-PID.img, the ring's content among the pages of the process, as CRIU has it
// Restore  io_setup(2) makes a ring somewhere; as many writes to /dev/null as the ring had passed since its last
//          turn bring the kernel's own position to where it was, then it gets its content and is moved
// Lost     whether a request is under way: nothing shows it. Reads and writes of files end soon, and the ring
//          must stand still for a while; IOCB_CMD_POLL may wait for ever. The report says so
// Source   io_setup(2), io_submit(2), io_getevents(2), fs/aio.c; tested on 6.18
// Rule     A context is found by the address of its ring and the index that the ring holds; mremap(2) tells it
//          its new address (aio_ring_mremap). The index is the kernel's: it is never written.
// Rule     The kernel keeps the position where it adds (tail) for itself, and takes the one where events are
//          fetched (head) from the ring.
#include "engine/memory/aio_ring.h"

#include <absl/strings/str_cat.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/io.h"
#include "engine/tasks/process_tree.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kMagic = 0xa10a10a1;
constexpr std::size_t kBatch = 64;
constexpr std::uint64_t kMaxBytes = std::uint64_t{64} << 20;

// struct aio_ring of fs/aio.c, before the events.
struct Ring {
  std::uint32_t id, count, head, tail, magic, compatible, incompatible, header_bytes;
};
static_assert(sizeof(Ring) == sizeof(io_event));

bool IsKnown(const Ring& ring, std::uint64_t size) {
  return ring.magic == kMagic && ring.incompatible == 0 && ring.header_bytes == sizeof(Ring) &&
         ring.count > 2 && ring.count == size / sizeof(io_event) - 1 && ring.head < ring.count &&
         ring.tail < ring.count && size <= kMaxBytes;
}

Result<Ring> ReadRing(int mem_fd, std::uint64_t address) {
  Ring ring = {};
  RETURN_IF_ERROR(ReadExactAt(mem_fd, std::as_writable_bytes(std::span(&ring, 1)), address));
  return ring;
}

// The argument of io_setup(2) that gives a ring of this size; the kernel doubles it, adds two and fills up the
// last page.
std::uint32_t RequestsFor(const Ring& ring) { return (ring.count - 2) / 2; }

Result<int> SendNull(RestoredProcess& process) {
  ASSIGN_OR_RETURN(const UniqueFd null, OpenAt(AT_FDCWD, "/dev/null", O_WRONLY));
  return SendInto(process, null.get());
}

// Lets `count` events pass through the context.
Status Advance(RestoredProcess& process, std::uint64_t context, std::uint32_t count) {
  if (count == 0) return OkStatus();
  ASSIGN_OR_RETURN(const int null, SendNull(process));
  RemoteSyscalls& remote = *process.remote;
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t events, remote.Reserve(kBatch * sizeof(io_event)));
  iocb request = {};
  request.aio_lio_opcode = IOCB_CMD_PWRITE;
  request.aio_fildes = static_cast<std::uint32_t>(null);
  request.aio_buf = events;
  request.aio_nbytes = 1;
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(request));
  std::array<std::uint64_t, kBatch> pointers;
  pointers.fill(at);
  ASSIGN_OR_RETURN(const std::uint64_t list, remote.PutValue(pointers));
  while (count > 0) {
    const std::uint64_t batch = std::min<std::uint64_t>(count, kBatch);
    ASSIGN_OR_RETURN(const std::uint64_t submitted,
                     remote.Call("io_submit", SYS_io_submit, context, batch, list));
    ASSIGN_OR_RETURN(
        const std::uint64_t fetched,
        remote.Call("io_getevents", SYS_io_getevents, context, submitted, submitted, events, 0));
    if (fetched == 0 || fetched != submitted) return Internal("writes to /dev/null do not end");
    count -= static_cast<std::uint32_t>(fetched);
  }
  return remote.Call("close", SYS_close, null).status();
}

Status WriteAt(int fd, std::span<const std::byte> bytes, std::uint64_t address) {
  const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(address));
  if (put == static_cast<ssize_t>(bytes.size())) return OkStatus();
  return SyscallError(put < 0 ? errno : EIO, "write an asynchronous I/O ring");
}

}  // namespace

Result<image::AioRingEntry> ReadAioRing(int mem_fd, std::uint64_t start, std::uint64_t size) {
  using namespace std::chrono_literals;
  constexpr auto kStill = 20ms, kNap = 2ms, kLongest = 1000ms;
  ASSIGN_OR_RETURN(Ring ring, ReadRing(mem_fd, start));
  auto still = 0ms;
  for (auto waited = 0ms; still < kStill; waited += kNap, still += kNap) {
    if (waited >= kLongest) {
      return Unimplemented("asynchronous I/O does not end; stop it and try again");
    }
    std::this_thread::sleep_for(kNap);
    ASSIGN_OR_RETURN(const Ring now, ReadRing(mem_fd, start));
    if (now.tail != ring.tail) still = 0ms;
    ring = now;
  }
  if (!IsKnown(ring, size)) {
    return Unimplemented(absl::StrCat("the asynchronous I/O ring at ", absl::Hex(start),
                                      " is of an unknown kind or was changed"));
  }
  image::AioRingEntry entry;
  entry.set_id(start);
  entry.set_nr_req(RequestsFor(ring));
  entry.set_ring_len(static_cast<std::uint32_t>(size));
  return entry;
}

Status RestoreAioRing(RestoredProcess& process, std::uint64_t start, std::uint64_t size) {
  const std::string name = absl::StrCat("asynchronous I/O ring at ", absl::Hex(start));
  ASSIGN_OR_RETURN(const UniqueFd mem, OpenAt(process.proc.get(), "mem", O_RDWR));
  ASSIGN_OR_RETURN(const Ring old, ReadRing(mem.get(), start));
  if (!IsKnown(old, size)) return InvalidArgument(name + ": impossible content");
  std::vector<std::byte> events(size - sizeof(Ring));
  RETURN_IF_ERROR(ReadExactAt(mem.get(), events, start + sizeof(Ring)));

  RemoteSyscalls& remote = *process.remote;
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t result, remote.PutValue(std::uint64_t{0}));
  RETURN_IF_ERROR(
      remote.Call("io_setup for the " + name, SYS_io_setup, RequestsFor(old), result).status());
  ASSIGN_OR_RETURN(const std::uint64_t context, remote.ReadValue<std::uint64_t>(result));
  ASSIGN_OR_RETURN(const Ring made, ReadRing(mem.get(), context));
  if (made.count != old.count) {
    return FailedPrecondition(
        absl::StrCat(name, ": it has ", made.count, " places here and had ", old.count,
                     "; the kernel makes no smaller ones on a node with more processors"));
  }
  RETURN_IF_ERROR(Advance(process, context, old.tail));
  RETURN_IF_ERROR(
      WriteAt(mem.get(), std::as_bytes(std::span(&old.head, 1)), context + offsetof(Ring, head)));
  RETURN_IF_ERROR(WriteAt(mem.get(), events, context + sizeof(Ring)));
  return remote
      .Call("mremap the " + name, SYS_mremap, context, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
            start)
      .status();
}

}  // namespace stasis::engine
