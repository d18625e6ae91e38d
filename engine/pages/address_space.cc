// Source  userfaultfd(2), ioctl_userfaultfd(2); fs/userfaultfd.c, mm/userfaultfd.c; tested on 6.18
// Rule    A thread that forks, unmaps, moves or drops memory sleeps until its event is read. From before it
//         begins until it has woken up, UFFDIO_COPY says EAGAIN (mmap_changing), so no page comes between what
//         it did and what we know of it: pages that are pending at a fork are pending in both.
// Rule    EEXIST: the page is there. ENOENT: no area of ours is there (any more), or the range is not within
//         one area. The area of a mremap(2) whose event is on its way is absent, too, but a second call says
//         EAGAIN then. ESRCH: the process has ended or executed another program.
// Rule    UFFDIO_COPY wakes who waits for what it brought; after the other answers it is up to us.
// Rule    UFFDIO_COPY needs no PROT_WRITE, and pages are charged to the owner of the memory.
// Not     MADV_GUARD_INSTALL and MADV_WIPEONFORK make no event. A guard that the program puts over memory
//         that is not loaded yet is replaced by that (pte_none_mostly() in mfill_atomic_install_pte()).
#include "engine/pages/address_space.h"

#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include "engine/base/io.h"

namespace stasis::engine::pages {
namespace {

// For a fault: few enough to be swift, enough for a program that goes on reading.
constexpr std::uint64_t kFaultBytes = std::uint64_t{64} << 10;
// In the background: who faults meanwhile waits for one of them, 0.2 ms out of the page cache.
constexpr std::uint64_t kPieceBytes = std::uint64_t{512} << 10;
// Memory may be short until the kernel has ended something: 10 s.
constexpr int kMostShortages = 1000;
constexpr unsigned kShortageNapMicroseconds = 10'000;

std::span<std::byte> Buffer() {
  alignas(4096) static std::array<std::byte, kPieceBytes> buffer;
  return buffer;
}

Status BadEvent() { return Internal("an unknown event of a userfaultfd"); }

}  // namespace

const std::uint64_t kWantedFeatures = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                      UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

Status PagesFile::ReadAt(std::span<std::byte> bytes, std::uint64_t at) const {
  return framed ? framed->ReadAt(bytes, offset + at) : ReadExactAt(fd.get(), bytes, offset + at);
}

Status AddressSpace::ReadEvents(const std::function<void(AddressSpace)>& on_fork) {
  while (true) {
    uffd_msg message = {};
    const ssize_t got = ::read(uffd_.get(), &message, sizeof(message));
    if (got < 0 && errno == EAGAIN) return OkStatus();
    if (got < 0 && errno == EINTR) continue;
    absent_ = kNowhere;
    if (got != sizeof(message)) return SyscallError(got < 0 ? errno : EIO, "read a userfaultfd");
    const auto& arg = message.arg;
    switch (message.event) {
      case UFFD_EVENT_PAGEFAULT:
        faults_.push_back(arg.pagefault.address & ~(kPageBytes - 1));
        break;
      case UFFD_EVENT_FORK:
        on_fork(AddressSpace(UniqueFd(static_cast<int>(arg.fork.ufd)), pending_));
        break;
      case UFFD_EVENT_REMAP:
        pending_.Move(arg.remap.from, arg.remap.to, arg.remap.len);
        next_ = 0;  // it may have gone to where the background has been
        break;
      case UFFD_EVENT_REMOVE:
      case UFFD_EVENT_UNMAP:
        pending_.Remove(arg.remove.start, arg.remove.end);
        break;
      default:
        return BadEvent();
    }
  }
}

Status AddressSpace::ServeFaults(std::span<const PagesFile> files) {
  while (!faults_.empty() && !gone_) {
    ASSIGN_OR_RETURN(const Outcome outcome, Serve(files, faults_.front()));
    if (outcome == Outcome::kAgain) break;
    faults_.pop_front();
  }
  return OkStatus();
}

Status AddressSpace::LoadNext(std::span<const PagesFile> files) {
  auto run = pending_.From(next_);
  if (!run) run = pending_.From(0);
  if (!run || gone_) return OkStatus();
  run->end = std::min(run->end, run->start + kPieceBytes);
  ASSIGN_OR_RETURN(const Outcome outcome, Load(files, *run));
  next_ = outcome == Outcome::kDone ? run->end : run->start;
  return OkStatus();
}

Result<AddressSpace::Outcome> AddressSpace::Serve(std::span<const PagesFile> files,
                                                  std::uint64_t address) {
  if (auto run = pending_.At(address)) {
    run->end = std::min(run->end, address + kFaultBytes);
    ASSIGN_OR_RETURN(const Outcome outcome, Load(files, *run));
    // It may be there in part, or no longer be in an area: who waits will see.
    if (outcome == Outcome::kDone) RETURN_IF_ERROR(Wake(address));
    return outcome;
  }
  uffdio_zeropage zero = {};
  zero.range = {.start = address, .len = kPageBytes};
  if (::ioctl(uffd_.get(), UFFDIO_ZEROPAGE, &zero) == 0) return Outcome::kDone;
  ASSIGN_OR_RETURN(const Outcome outcome, Refused(errno, address));
  if (outcome == Outcome::kDone) RETURN_IF_ERROR(Wake(address));
  return outcome;
}

Result<AddressSpace::Outcome> AddressSpace::Load(std::span<const PagesFile> files, PendingRun run) {
  const PagesFile& file = files[run.file];
  const std::span<std::byte> bytes = Buffer().first(run.end - run.start);
  RETURN_IF_ERROR(file.ReadAt(bytes, run.offset));
  std::uint64_t at = run.start;
  bool page_by_page = false;
  while (at < run.end && !gone_) {
    uffdio_copy copy = {};
    copy.dst = at;
    copy.src = reinterpret_cast<std::uint64_t>(bytes.data()) + (at - run.start);
    copy.len = page_by_page ? kPageBytes : run.end - at;
    const int error = ::ioctl(uffd_.get(), UFFDIO_COPY, &copy) == 0 ? 0 : errno;
    if (copy.copy > 0) {
      shortages_ = 0;
      pending_.Remove(at, at + static_cast<std::uint64_t>(copy.copy));
      at += static_cast<std::uint64_t>(copy.copy);
      continue;
    }
    if (error == ENOENT && copy.len > kPageBytes) {
      page_by_page = true;  // the range is of several areas by now
      continue;
    }
    ASSIGN_OR_RETURN(const Outcome outcome, Refused(error, at));
    if (outcome == Outcome::kAgain) return outcome;
    pending_.Remove(at, at + kPageBytes);
    at += kPageBytes;
  }
  return Outcome::kDone;
}

// kDone: there is no page to bring.
Result<AddressSpace::Outcome> AddressSpace::Refused(int error, std::uint64_t address) {
  switch (error) {
    case ESRCH:
      gone_ = true;
      return Outcome::kDone;
    case EEXIST:
      return Outcome::kDone;
    case EAGAIN:
      ::sched_yield();  // for the thread that is at it
      return Outcome::kAgain;
    case ENOENT:
      if (absent_ != address) {
        absent_ = address;
        return Outcome::kAgain;
      }
      absent_ = kNowhere;
      return Outcome::kDone;
    case ENOMEM:
      if (++shortages_ > kMostShortages) break;
      ::usleep(kShortageNapMicroseconds);
      return Outcome::kAgain;
    default:
      break;
  }
  return SyscallError(error, "bring a page");
}

Status AddressSpace::Wake(std::uint64_t address) {
  if (gone_) return OkStatus();
  uffdio_range range = {.start = address, .len = kPageBytes};
  if (::ioctl(uffd_.get(), UFFDIO_WAKE, &range) == 0) return OkStatus();
  return SyscallError(errno, "wake a thread that waits for a page");
}

}  // namespace stasis::engine::pages
