// Gives a process exactly the descriptors of its image.
//
// Source  unix(7), close_range(2), dup(2), getrlimit(2); tested on 6.18
// Rule    The kernel gives a new descriptor the lowest free number, also those that arrive by
// SCM_RIGHTS
//         (alloc_fd() in fs/file.c).
// Rule    RLIMIT_NOFILE bounds numbers, not counts: dup3(2) to one at or above it is EBADF.
// Not here  The final RLIMIT_NOFILE (tasks/)
#include "engine/files/descriptor_table.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "engine/base/io.h"
#include "engine/tracee/fd_channel.h"

namespace stasis::engine {
namespace {

using image::FdinfoEntry;

// Descriptors that we need besides those of the images.
constexpr std::size_t kOwnDescriptors = 256;

int NumberIn(const FdinfoEntry& descriptor) { return static_cast<int>(descriptor.fd()); }

// The table of one process in the making.
//
// Order: all numbers but the channel's are closed, so that n descriptors that are sent get the
// numbers 0 to n-1; the channel sits at a number >= n that nobody wants. The wanted numbers rise
// and are all different, so the i-th of them is >= i. Moved from the last to the first, descriptor
// i goes to a number >= i: never onto one below i, which still waits, and never onto a wanted
// number of another. What is overwritten has been moved already. In the end the numbers below n
// that nobody wants are closed.
class Table {
 public:
  Table(RestoredProcess& process, std::span<const int> our_fds)
      : process_(process), wanted_(process.image->descriptors), our_fds_(our_fds) {}

  Status Make() {
    const int channel_number = FreeNumber();
    RETURN_IF_ERROR(RaiseLimit(channel_number));
    ASSIGN_OR_RETURN(FdChannel channel, FdChannel::Open(remote(), process_.pidfd.get()));
    RETURN_IF_ERROR(channel.MoveTo(remote(), channel_number));
    RETURN_IF_ERROR(CloseRange(0, channel_number));
    RETURN_IF_ERROR(CloseFrom(channel_number + 1));
    ASSIGN_OR_RETURN(const std::vector<int> numbers, channel.Send(remote(), our_fds_));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      if (numbers[i] != static_cast<int>(i)) {
        return Internal("descriptor " + std::to_string(i) + " came as " +
                        std::to_string(numbers[i]));
      }
    }
    for (int i = size() - 1; i >= 0; --i) RETURN_IF_ERROR(Place(i));
    RETURN_IF_ERROR(CloseUnwanted());
    RETURN_IF_ERROR(channel.Close(remote()));
    return CheckCount();
  }

 private:
  RemoteSyscalls& remote() { return *process_.remote; }
  int size() const { return static_cast<int>(wanted_.size()); }

  // The lowest that is not below size() and that nobody wants.
  int FreeNumber() const {
    int number = size();
    for (const FdinfoEntry& descriptor : wanted_) {
      if (NumberIn(descriptor) == number) ++number;
    }
    return number;
  }

  // The soft limit of the moment is no part of the image; what the process had comes later.
  Status RaiseLimit(int channel_number) {
    remote().ResetArguments();
    ASSIGN_OR_RETURN(const std::uint64_t address, remote().Reserve(sizeof(rlimit64)));
    RETURN_IF_ERROR(
        remote().Call("prlimit64", SYS_prlimit64, 0, RLIMIT_NOFILE, 0, address).status());
    ASSIGN_OR_RETURN(rlimit64 limit, remote().ReadValue<rlimit64>(address));
    const int highest =
        wanted_.empty() ? channel_number : std::max(channel_number, NumberIn(wanted_.back()));
    if (static_cast<std::uint64_t>(highest) >= limit.rlim_max) {
      return FailedPrecondition(
          "descriptor " + std::to_string(highest) + " is beyond the container's hard limit of " +
          std::to_string(limit.rlim_max) + " open files (RLIMIT_NOFILE); raise it in the runtime");
    }
    limit.rlim_cur = limit.rlim_max;
    ASSIGN_OR_RETURN(const std::uint64_t raised, remote().PutValue(limit));
    return remote().Call("prlimit64", SYS_prlimit64, 0, RLIMIT_NOFILE, raised, 0).status();
  }

  // Closes [first, end).
  Status CloseRange(int first, int end) {
    if (first >= end) return OkStatus();
    return remote().Call("close_range", SYS_close_range, first, end - 1, 0).status();
  }
  Status CloseFrom(int first) {
    return remote().Call("close_range", SYS_close_range, first, UINT32_MAX, 0).status();
  }

  Status Place(int i) {
    const FdinfoEntry& descriptor = wanted_[static_cast<std::size_t>(i)];
    const bool close_on_exec = (descriptor.flags() & FD_CLOEXEC) != 0;
    const int number = NumberIn(descriptor);
    if (number != i) {
      return remote()
          .Call("dup3 to " + std::to_string(number), SYS_dup3, i, number,
                close_on_exec ? O_CLOEXEC : 0)
          .status();
    }
    if (close_on_exec) return OkStatus();  // it came so
    return remote().Call("fcntl F_SETFD", SYS_fcntl, number, F_SETFD, 0).status();
  }

  Status CloseUnwanted() {
    int next = 0;
    for (const FdinfoEntry& descriptor : wanted_) {
      RETURN_IF_ERROR(CloseRange(next, std::min(NumberIn(descriptor), size())));
      next = NumberIn(descriptor) + 1;
    }
    return OkStatus();
  }

  Status CheckCount() const {
    ASSIGN_OR_RETURN(UniqueFd directory, OpenAt(process_.proc.get(), "fd", O_RDONLY | O_DIRECTORY));
    DIR* stream = ::fdopendir(directory.get());
    if (stream == nullptr) return SyscallError(errno, "fdopendir");
    (void)directory.Release();  // the stream's now
    int count = 0;
    while (const dirent* entry = ::readdir(stream)) count += entry->d_name[0] != '.' ? 1 : 0;
    ::closedir(stream);
    if (count == size()) return OkStatus();
    return Internal("has " + std::to_string(count) + " descriptors, not " + std::to_string(size()));
  }

  RestoredProcess& process_;
  const std::vector<FdinfoEntry>& wanted_;  // in rising order
  std::span<const int> our_fds_;            // for each of `wanted_`
};

}  // namespace

Status MakeDescriptorTable(RestoredProcess& process, std::span<const int> our_fds) {
  return Table(process, our_fds).Make();
}

Status RaiseOurLimit(std::size_t open_files) {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return SyscallError(errno, "getrlimit");
  const std::size_t needed = open_files + kOwnDescriptors;
  // What is mapped or executed, and has no path, is open a second time (OpenPathless() in restore_files.cc).
  if (const rlimit more = {2 * needed, 2 * needed}; limit.rlim_max < more.rlim_max) {
    // CAP_SYS_RESOURCE, up to fs.nr_open; without it we try with what we have.
    if (::setrlimit(RLIMIT_NOFILE, &more) == 0) return OkStatus();
  }
  if (limit.rlim_max < needed) {
    return ResourceExhausted("the checkpoint has " + std::to_string(open_files) +
                             " open files, our hard limit (RLIMIT_NOFILE) is " +
                             std::to_string(limit.rlim_max) + "; raise it for this program");
  }
  if (limit.rlim_cur == limit.rlim_max) return OkStatus();
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return SyscallError(errno, "setrlimit");
  return OkStatus();
}

}  // namespace stasis::engine
