// Restore  A ring begins at its first positions, and is brought to where it was (io_uring_advance.h); then its memory is written, and what it had registered is registered
// Source   io_uring_setup(2), io_uring_enter(2), io_uring_register(2); tested on 6.18
// Rule     A ring with IORING_SETUP_R_DISABLED belongs, with IORING_SETUP_SINGLE_ISSUER, to the thread that enables it.
// Check    Where the kernel's structures can be read, what was made is compared with what was saved
// Rule     SCM_RIGHTS takes no ring (Linux 6.7). A process fetches it from another of the same user (pidfd_getfd(2)).
#include "engine/files/io_uring_restore.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/io_uring.h"
#include "engine/files/io_uring_advance.h"
#include "engine/files/io_uring_state.h"
#include "engine/image/image_file.h"
#include "engine/memory/dump_areas.h"
#include "engine/memory/only_holes.h"
#include "engine/tasks/process_tree.h"
#include "engine/tasks/restore_attributes.h"
#include "engine/tracee/call_batch.h"
#include "engine/tracee/fd_channel.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kMostEntries = 32768, kMostCompletions = 65536;  // IORING_MAX_ENTRIES
constexpr int kMostSlots = 1 << 20;
constexpr std::uint32_t kNoSqArray = 1u << 16;  // IORING_SETUP_NO_SQARRAY, Linux 6.6

Status CheckRing(const image::IoUringEntry& ring, std::size_t bytes) {
  const auto is_power = [](std::uint32_t n) { return n != 0 && (n & (n - 1)) == 0; };
  const image::IoUringLayout& layout = ring.layout();
  const std::uint64_t size = ring.ring_bytes();
  const bool fits = bytes == size + ring.entries_bytes() && size >= 4 &&
                    layout.sq_head() <= size - 4 && layout.sq_tail() <= size - 4 &&
                    layout.cq_head() <= size - 4 && layout.cq_tail() <= size - 4;
  const bool counts = is_power(ring.sq_entries()) && ring.sq_entries() <= kMostEntries &&
                      is_power(ring.cq_entries()) && ring.cq_entries() <= kMostCompletions &&
                      ring.files_size() <= kMostSlots && ring.buffers_size() <= kMostSlots;
  const bool positions = TimeToReach(ring.sq_head(), ring.sq_entries()) <= kMostTime &&
                         ring.cq_tail() <= ring.sq_head() &&
                         (ring.cq_tail() == ring.sq_head() || ring.drain_disabled());
  if (fits && counts && positions) return OkStatus();
  return InvalidArgument("stasis-io-uring.img: an impossible ring");
}

image::IoUringLayout LayoutOf(const io_uring_params& made) {
  image::IoUringLayout layout;
  layout.set_sq_head(made.sq_off.head);
  layout.set_sq_tail(made.sq_off.tail);
  layout.set_sq_mask(made.sq_off.ring_mask);
  layout.set_sq_count(made.sq_off.ring_entries);
  layout.set_sq_flags(made.sq_off.flags);
  layout.set_sq_dropped(made.sq_off.dropped);
  layout.set_sq_array((made.flags & kNoSqArray) != 0 ? 0 : made.sq_off.array);
  layout.set_cq_head(made.cq_off.head);
  layout.set_cq_tail(made.cq_off.tail);
  layout.set_cq_mask(made.cq_off.ring_mask);
  layout.set_cq_count(made.cq_off.ring_entries);
  layout.set_cq_overflow(made.cq_off.overflow);
  layout.set_cq_entries(made.cq_off.cqes);
  layout.set_cq_flags(made.cq_off.flags);
  return layout;
}

std::uint32_t WordAt(std::span<const std::byte> bytes, std::uint32_t place) {
  std::uint32_t word = 0;
  std::memcpy(&word, bytes.data() + place, sizeof(word));
  return word;
}

int NumberOf(const RestoredProcess& process, std::uint32_t id) {
  for (const image::FdinfoEntry& descriptor : process.image->descriptors) {
    if (KeyOf(descriptor) == FileKey(image::FD_EXT, id)) return NumberIn(descriptor);
  }
  return -1;
}

Result<std::uint64_t> Register(RemoteSyscalls& remote, std::string_view what, int ring,
                               unsigned operation, std::uint64_t argument, std::uint32_t count) {
  return remote.Call(what, SYS_io_uring_register, ring, operation, argument, count);
}

// `bytes` in memory of the process, for as long as this lives or until Finish(): they may be more than the room for
// arguments.
class Lent {
 public:
  static Result<Lent> Put(RemoteSyscalls& remote, std::span<const std::byte> bytes) {
    const std::size_t size = std::max<std::size_t>(bytes.size(), 1);
    ASSIGN_OR_RETURN(const std::uint64_t at,
                     remote.Call("mmap", SYS_mmap, 0, size, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    RETURN_IF_ERROR(WriteMemory(remote.tracee().tid(), at, bytes));
    return Lent(at, size);
  }
  std::uint64_t address() const { return at_; }
  Status Finish(RemoteSyscalls& remote) const {
    return remote.Call("munmap", SYS_munmap, at_, size_).status();
  }

 private:
  Lent(std::uint64_t at, std::size_t size) : at_(at), size_(size) {}
  std::uint64_t at_;
  std::size_t size_;
};

// What is registered with a ring, by a thread that may.
class Registrar {
 public:
  Registrar(RestoredProcess& process, RemoteSyscalls& remote, int number,
            const std::map<FileKey, UniqueFd>& files)
      : process_(process), remote_(remote), number_(number), files_(files) {}

  Status Run(const image::IoUringEntry& ring) {
    if (ring.files_size() > 0) RETURN_IF_ERROR(Files(ring));
    if (ring.buffers_size() > 0) RETURN_IF_ERROR(Buffers(ring));
    if (ring.worker_limits_size() == 2) {
      remote_.ResetArguments();
      const std::array<std::uint32_t, 2> limits = {ring.worker_limits(0), ring.worker_limits(1)};
      ASSIGN_OR_RETURN(const std::uint64_t at, remote_.PutValue(limits));
      RETURN_IF_ERROR(Register(remote_, "IORING_REGISTER_IOWQ_MAX_WORKERS", number_,
                               IORING_REGISTER_IOWQ_MAX_WORKERS, at, 2)
                          .status());
    }
    if (ring.has_eventfd()) RETURN_IF_ERROR(Eventfd(ring));
    for (const int fd : sent_) RETURN_IF_ERROR(remote_.Call("close", SYS_close, fd).status());
    return OkStatus();
  }

 private:
  // The number of file `id` in the process, for now.
  Result<int> NumberOfFile(std::uint32_t id) {
    for (const image::FdinfoEntry& descriptor : process_.image->descriptors) {
      if (descriptor.id() == id) return NumberIn(descriptor);
    }
    const auto known = numbers_.find(id);
    if (known != numbers_.end()) return known->second;
    const auto file =
        std::ranges::find_if(files_, [id](const auto& entry) { return entry.first.second == id; });
    if (file == files_.end()) return DataLoss("a registered file that is not in files.img");
    ASSIGN_OR_RETURN(FdChannel channel, FdChannel::Open(remote_, process_.pidfd.get()));
    const int ours = file->second.get();
    ASSIGN_OR_RETURN(const std::vector<int> there, channel.Send(remote_, std::span(&ours, 1)));
    RETURN_IF_ERROR(channel.Close(remote_));
    sent_.push_back(there.front());
    return numbers_[id] = there.front();
  }

  template <typename T>
  Status RegisterAll(std::string_view what, unsigned operation, const std::vector<T>& values,
                     const std::vector<std::uint64_t>& tags) {
    ASSIGN_OR_RETURN(const Lent data, Lent::Put(remote_, std::as_bytes(std::span(values))));
    ASSIGN_OR_RETURN(const Lent marks, Lent::Put(remote_, std::as_bytes(std::span(tags))));
    io_uring_rsrc_register all = {};
    all.nr = static_cast<std::uint32_t>(values.size());
    all.data = data.address();
    all.tags = marks.address();
    remote_.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote_.PutValue(all));
    const Status status = Register(remote_, what, number_, operation, at, sizeof(all)).status();
    if (ErrnoOf(status) == ENOMEM) {
      return Annotate(status, "the limit of locked memory here (RLIMIT_MEMLOCK) may be too low");
    }
    RETURN_IF_ERROR(status);
    RETURN_IF_ERROR(data.Finish(remote_));
    return marks.Finish(remote_);
  }

  Status Files(const image::IoUringEntry& ring) {
    std::vector<std::int32_t> numbers;
    std::vector<std::uint64_t> tags;
    for (const image::IoUringSlot& slot : ring.files()) {
      tags.push_back(slot.tag());
      if (!slot.has_file()) {
        numbers.push_back(-1);
        continue;
      }
      ASSIGN_OR_RETURN(const int number, NumberOfFile(slot.file()));
      numbers.push_back(number);
    }
    return RegisterAll("IORING_REGISTER_FILES2", IORING_REGISTER_FILES2, numbers, tags);
  }

  Status Buffers(const image::IoUringEntry& ring) {
    std::vector<iovec> places;
    std::vector<std::uint64_t> tags;
    for (const image::IoUringBuffer& buffer : ring.buffers()) {
      // Of the process, not ours.
      places.push_back(
          {reinterpret_cast<void*>(buffer.length() == 0 ? 0 : buffer.address()), buffer.length()});
      tags.push_back(buffer.tag());
    }
    return RegisterAll("IORING_REGISTER_BUFFERS2", IORING_REGISTER_BUFFERS2, places, tags);
  }

  Status Eventfd(const image::IoUringEntry& ring) {
    ASSIGN_OR_RETURN(const std::int32_t fd, NumberOfFile(ring.eventfd()));
    remote_.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote_.PutValue(fd));
    return Register(remote_, "IORING_REGISTER_EVENTFD", number_,
                    ring.eventfd_async() ? IORING_REGISTER_EVENTFD_ASYNC : IORING_REGISTER_EVENTFD,
                    at, 1)
        .status();
  }

  RestoredProcess& process_;
  RemoteSyscalls& remote_;
  const int number_;
  const std::map<FileKey, UniqueFd>& files_;
  std::map<std::uint32_t, int> numbers_;
  std::vector<int> sent_;
};

// What the kernel knows of a ring that was made, compared with what it knew of the old one.
Status CheckMade(const RingState& made, const image::IoUringEntry& old) {
  constexpr std::uint32_t kAdded = IORING_SETUP_CQSIZE;
  const auto differs = [](std::string_view what) {
    return Internal("a new io_uring is not as the old one was: " + std::string(what));
  };
  if ((made.setup_flags | kAdded) != (old.setup_flags() | kAdded)) return differs("set-up flags");
  if (made.sq_head != old.sq_head() || made.cq_tail != old.cq_tail()) return differs("positions");
  if (made.drain_disabled != old.drain_disabled()) return differs("what was skipped");
  if (made.submitter.has_value() != (old.submitter() != 0)) return differs("its thread");
  if ((made.eventfd != 0) != old.has_eventfd() || made.eventfd_async != old.eventfd_async()) {
    return differs("its eventfd");
  }
  if (!made.busy.empty()) return differs(made.busy);
  const auto has_file = [](const RingSlot& a, const image::IoUringSlot& b) {
    return (a.file != 0) == b.has_file() && a.tag == b.tag();
  };
  if (!std::ranges::equal(made.files, old.files(), has_file)) return differs("registered files");
  const auto is_buffer = [](const RingBuffer& a, const image::IoUringBuffer& b) {
    return a.address == b.address() && a.length == b.length() && a.tag == b.tag();
  };
  if (!std::ranges::equal(made.buffers, old.buffers(), is_buffer)) return differs("buffers");
  const bool same_limits = std::ranges::equal(made.worker_limits, old.worker_limits());
  return same_limits ? OkStatus() : differs("limits of its workers");
}

// Runs `work` with calls in thread `tid` of the images.
using Work = std::function<Status(RestoredProcess&, RemoteSyscalls&, const OneRun&)>;
Status InThread(std::vector<RestoredProcess>& processes, pid_t tid, const Work& work) {
  for (RestoredProcess& process : processes) {
    if (process.image->zombie) continue;
    ASSIGN_OR_RETURN(OneRun how, RunOf(process));
    if (process.image->pid() == tid) return work(process, *process.remote, how);
    for (RestoredProcess::Thread& thread : process.others) {
      if (thread.image->tid != tid) continue;
      how.ids.second = tid;
      return RunIn(process, thread, [&](const ThreadImage&, RemoteSyscalls& remote) {
        return work(process, remote, how);
      });
    }
  }
  return DataLoss("no thread " + std::to_string(tid) + " for an io_uring");
}

}  // namespace

Result<RingRestorer> RingRestorer::Create(const ImageSource& source) {
  RingRestorer restorer;
  const std::string name = ImageName(kRingImage);
  if (!source.Size(name).ok()) return restorer;
  ASSIGN_OR_RETURN(std::vector<ImageRecord> records, ReadImageRecords(source, name, kRingImage));
  for (ImageRecord& record : records) {
    Ring ring;
    if (!ring.state.ParseFromString(record.message)) return DataLoss(name + " does not parse");
    RETURN_IF_ERROR(CheckRing(ring.state, record.bytes.size()));
    ring.memory = std::move(record.bytes);
    restorer.rings_[ring.state.id()] = std::move(ring);
  }
  return restorer;
}

namespace {

Status SetOptions(RemoteSyscalls& remote, unsigned options) {
  if (::ptrace(PTRACE_SETOPTIONS, remote.tracee().tid(), nullptr,
               reinterpret_cast<void*>(static_cast<std::uintptr_t>(options))) == 0) {
    return OkStatus();
  }
  return SyscallError(errno, "ptrace SETOPTIONS");
}

// The seccomp filters of the live process judge it: a checkpoint grants no ring where none is allowed.
Result<int> SetUp(RemoteSyscalls& remote, std::uint32_t entries, std::uint64_t parameters) {
  RETURN_IF_ERROR(SetOptions(remote, RestoreOptions() & ~unsigned{PTRACE_O_SUSPEND_SECCOMP}));
  const Result<std::uint64_t> made =
      remote.Call("io_uring_setup", SYS_io_uring_setup, entries, parameters);
  RETURN_IF_ERROR(SetOptions(remote, RestoreOptions()));
  if (ErrnoOf(made.status()) == EPERM || ErrnoOf(made.status()) == ENOSYS) {
    return FailedPrecondition(
        "io_uring is not allowed here (" + Message(made.status()) +
        "; the container's seccomp profile, or sysctl kernel.io_uring_disabled)");
  }
  RETURN_IF_ERROR(made.status());
  return static_cast<int>(*made);
}

}  // namespace

Status RingRestorer::Make(RestoredProcess& process, Ring& ring, int& number) {
  RemoteSyscalls& remote = *process.remote;
  const image::IoUringEntry& old = ring.state;
  io_uring_params parameters = {};
  parameters.flags = old.setup_flags() | IORING_SETUP_R_DISABLED;
  if (old.cq_entries() != 2 * old.sq_entries()) parameters.flags |= IORING_SETUP_CQSIZE;
  parameters.cq_entries = old.cq_entries();
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(parameters));
  ASSIGN_OR_RETURN(number, SetUp(remote, old.sq_entries(), at));
  ASSIGN_OR_RETURN(parameters, remote.ReadValue<io_uring_params>(at));
  if (parameters.sq_entries != old.sq_entries() || parameters.cq_entries != old.cq_entries() ||
      LayoutOf(parameters).SerializeAsString() != old.layout().SerializeAsString()) {
    return FailedPrecondition(
        "this kernel lays out an io_uring otherwise than that of the checkpoint");
  }
  ASSIGN_OR_RETURN(ring.ours, GetFd(process.pidfd.get(), number));
  return OkStatus();
}

// From the process that has made it.
Result<int> RingRestorer::Fetch(RestoredProcess& process, std::uint32_t id) {
  const auto found = rings_.find(id);
  if (found == rings_.end() || found->second.maker == nullptr) {
    return DataLoss("an io_uring that no process holds");
  }
  const Ring& ring = found->second;
  if (ring.maker == &process) {
    ASSIGN_OR_RETURN(
        const std::uint64_t number,
        process.remote->Call("fcntl F_DUPFD", SYS_fcntl, ring.number, F_DUPFD_CLOEXEC, 0));
    return static_cast<int>(number);
  }
  ASSIGN_OR_RETURN(const int maker, SendInto(process, ring.maker->pidfd.get()));
  const Result<std::uint64_t> number =
      process.remote->Call("pidfd_getfd of an io_uring", SYS_pidfd_getfd, maker, ring.number, 0);
  RETURN_IF_ERROR(process.remote->Call("close", SYS_close, maker).status());
  RETURN_IF_ERROR(number.status());
  return static_cast<int>(*number);
}

Status RingRestorer::Place(RestoredProcess& process, std::map<FileKey, UniqueFd>& files) {
  std::map<std::uint32_t, std::vector<const image::FdinfoEntry*>> wanted;
  for (const image::FdinfoEntry& descriptor : process.image->descriptors) {
    if (Has(KeyOf(descriptor))) wanted[descriptor.id()].push_back(&descriptor);
  }
  for (const auto& [id, descriptors] : wanted) {
    Ring& ring = rings_.at(id);
    int number = -1;
    if (ring.maker == nullptr) {
      RETURN_IF_ERROR(Make(process, ring, number));
      ASSIGN_OR_RETURN(files[FileKey(image::FD_EXT, id)], Duplicate(ring.ours.get()));
      ring.maker = &process;
      ring.number = NumberIn(*descriptors.front());
    } else {
      ASSIGN_OR_RETURN(number, Fetch(process, id));
    }
    for (const image::FdinfoEntry* const descriptor : descriptors) {
      const int flags = (descriptor->flags() & FD_CLOEXEC) != 0 ? O_CLOEXEC : 0;
      RETURN_IF_ERROR(
          process.remote->Call("dup3", SYS_dup3, number, NumberIn(*descriptor), flags).status());
    }
    RETURN_IF_ERROR(process.remote->Call("close", SYS_close, number).status());
  }
  return OkStatus();
}

Status RingRestorer::Map(RestoredProcess& process) {
  std::vector<ChosenMapping> mappings;
  std::map<std::uint32_t, int> fetched;  // that the process holds by its memory alone
  for (const image::VmaEntry& vma : process.image->mm.vmas()) {
    if ((vma.status() & kAreaPlugin) == 0) continue;
    const auto id = static_cast<std::uint32_t>(vma.shmid());
    int number = NumberOf(process, id);
    if (number < 0) {
      if (!fetched.contains(id)) {
        ASSIGN_OR_RETURN(fetched[id], Fetch(process, id));
      }
      number = fetched[id];
    }
    mappings.push_back({.range = {vma.start(), vma.end()},
                        .fd = number,
                        .prot = static_cast<int>(vma.prot()),
                        .offset = vma.pgoff()});
  }
  RETURN_IF_ERROR(MapIntoHoles(process, mappings));
  for (const auto& [id, number] : fetched) {
    RETURN_IF_ERROR(process.remote->Call("close", SYS_close, number).status());
  }
  return OkStatus();
}

Status RingRestorer::FinishOne(std::vector<RestoredProcess>& processes, std::uint32_t id,
                               Ring& ring, const std::map<FileKey, UniqueFd>& files) {
  const image::IoUringEntry& old = ring.state;
  const std::uint64_t size = old.ring_bytes();
  const auto saved = std::as_bytes(std::span(ring.memory));
  ASSIGN_OR_RETURN(const RingMemory memory,
                   RingMemory::Map(ring.ours.get(), IORING_OFF_SQ_RING, size));
  ASSIGN_OR_RETURN(const RingMemory entries,
                   RingMemory::Map(ring.ours.get(), IORING_OFF_SQES, old.entries_bytes()));
  const std::uint32_t head = WordAt(saved, old.layout().cq_head());
  if (old.cq_tail() - head > old.cq_entries())
    return DataLoss("an io_uring with impossible positions");
  const Work work = [&](RestoredProcess& process, RemoteSyscalls& remote,
                        const OneRun& how) -> Status {
    int number = NumberOf(process, id);
    const bool is_fetched = number < 0;
    if (is_fetched) {
      ASSIGN_OR_RETURN(number, Fetch(process, id));
    }
    if ((old.setup_flags() & IORING_SETUP_R_DISABLED) == 0) {
      RETURN_IF_ERROR(Register(remote, "IORING_REGISTER_ENABLE_RINGS", number,
                               IORING_REGISTER_ENABLE_RINGS, 0, 0)
                          .status());
    }
    RETURN_IF_ERROR(AdvanceRing(remote, how, number, old, memory, entries, head));
    if (WordAt(memory.bytes(), old.layout().sq_head()) != old.sq_head() ||
        WordAt(memory.bytes(), old.layout().cq_tail()) != old.cq_tail()) {
      return Internal("a new io_uring did not get to the positions of the old one");
    }
    std::memcpy(memory.bytes().data(), saved.data(), size);
    std::memcpy(entries.bytes().data(), saved.data() + size, old.entries_bytes());
    RETURN_IF_ERROR(Registrar(process, remote, number, files).Run(old));
    return is_fetched ? remote.Call("close", SYS_close, number).status() : OkStatus();
  };
  const auto actor = static_cast<pid_t>(old.submitter() != 0
                                            ? old.submitter()
                                            : static_cast<std::uint32_t>(ring.maker->image->pid()));
  return InThread(processes, actor, work);
}

// By the ring that the thread uses, which may be another than the one that it names.
Status RingRestorer::TakeHandle(std::vector<RestoredProcess>& processes, std::uint32_t id,
                                const image::IoUringHandle& handle) {
  const Work work = [&](RestoredProcess& process, RemoteSyscalls& remote, const OneRun&) -> Status {
    const int by = NumberOf(process, id), number = NumberOf(process, handle.ring());
    if (by < 0 || number < 0) return Unimplemented("a registered ring that its process has closed");
    io_uring_rsrc_update place = {};
    place.offset = handle.index();
    place.data = static_cast<std::uint64_t>(number);
    remote.ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(place));
    return Register(remote, "IORING_REGISTER_RING_FDS", by, IORING_REGISTER_RING_FDS, at, 1)
        .status();
  };
  return InThread(processes, static_cast<pid_t>(handle.thread()), work);
}

Status RingRestorer::Finish(std::vector<RestoredProcess>& processes,
                            const std::map<FileKey, UniqueFd>& files) {
  if (rings_.empty()) return OkStatus();
  Result<RingReader> reader = RingReader::Create();  // may not be had here
  const auto finish = [&](std::uint32_t id, Ring& ring) -> Status {
    if (ring.maker == nullptr) return DataLoss("no process holds it");
    RETURN_IF_ERROR(FinishOne(processes, id, ring, files));
    if (reader.ok()) {
      ASSIGN_OR_RETURN(const RingState made, reader->Read(ring.ours.get()));
      RETURN_IF_ERROR(CheckMade(made, ring.state));
    }
    ring.ours.Reset();
    ring.memory.clear();
    return OkStatus();
  };
  for (auto& [id, ring] : rings_) {
    RETURN_IF_ERROR(Annotate(finish(id, ring), "io_uring " + std::to_string(id)));
  }
  for (auto& [id, ring] : rings_) {
    for (const image::IoUringHandle& handle : ring.state.handles()) {
      RETURN_IF_ERROR(
          Annotate(TakeHandle(processes, id, handle), "io_uring " + std::to_string(id)));
    }
  }
  return OkStatus();
}

}  // namespace stasis::engine
