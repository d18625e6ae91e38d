// Source  userfaultfd(2), ioctl_userfaultfd(2); tested on 6.18
// Rule    userfaultfd(2) is of the memory of who calls it. USERFAULTFD_IOC_NEW of /dev/userfaultfd (Linux 6.1)
//         gives one that also serves faults of the kernel (system calls that are given such memory), to
//         whoever has a descriptor of the device, with no right of its own.
// Rule    UFFD_FEATURE_EVENT_FORK needs CAP_SYS_PTRACE of who calls UFFDIO_API: us.
// Rule    A huge page around one that is there would make its neighbours be there, with zeros. Armed areas
//         get none (userfaultfd_missing() in mm/huge_memory.c, khugepaged); until then the process must have
//         them switched off.
#include "engine/memory/lazy_pages.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include "engine/base/io.h"
#include "engine/pages/address_space.h"
#include "engine/pages/page_protocol.h"
#include "engine/tracee/fd_channel.h"

namespace stasis::engine {
namespace {

using pages::Message;
using pages::MessageKind;

// Less than that is there as fast as a userfaultfd.
constexpr std::uint64_t kLeastBytes = std::uint64_t{1} << 20;
constexpr int kReadyTimeoutMs = 10'000;

bool OverlapsAny(const AddressRange& range, const std::vector<AddressRange>& others) {
  return std::ranges::any_of(others, [&](const auto& other) { return other.Overlaps(range); });
}

// What must have its pages (locks), what is not the program's alone (rings), what a fork treats otherwise, and
// what the kernel grows by itself, stays out.
bool MayComeLater(const AreaImage& area, const MemoryLayout& layout,
                  const std::vector<AddressRange>& inherited) {
  constexpr std::uint64_t kOddAdvice = std::uint64_t{1} << MADV_DONTFORK | std::uint64_t{1}
                                                                               << MADV_WIPEONFORK;
  constexpr int kOddFlags = MAP_GROWSDOWN | MAP_HUGETLB;
  return area.kind == AreaImage::Kind::kAnonymous && !area.droppable && !area.locked &&
         (area.map_flags & kOddFlags) == 0 && (area.advice & kOddAdvice) == 0 &&
         !OverlapsAny(area.range, layout.guards) && !OverlapsAny(area.range, layout.aio_rings) &&
         !OverlapsAny(area.range, inherited);
}

Status Send(int socket, const Message& message, std::span<const int> fds) {
  alignas(cmsghdr) std::byte control[CMSG_SPACE(3 * sizeof(int))] = {};
  iovec payload = {.iov_base = const_cast<Message*>(&message), .iov_len = sizeof(message)};
  msghdr header = {};
  header.msg_iov = &payload;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  if (::sendmsg(socket, &header, MSG_NOSIGNAL) >= 0) return OkStatus();
  const int error = errno;
  return Annotate(Unavailable(std::strerror(error)), "the page server has ended");
}

Status Spawn(const std::string& program, int socket) {
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  for (int fd = 0; fd < 3; ++fd) {
    ::posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
  }
  ::posix_spawn_file_actions_adddup2(&actions, socket, pages::kServerSocket);
  ::posix_spawn_file_actions_addchdir_np(&actions, "/");
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  std::string name = program;
  char* const argv[] = {name.data(), nullptr};
  char* const environment[] = {nullptr};
  pid_t child = 0;
  const int error =
      ::posix_spawn(&child, program.c_str(), &actions, &attributes, argv, environment);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return SyscallError(error, "run " + program);
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  return OkStatus();
}

Result<UniqueFd> ListOf(const std::vector<pages::PendingRun>& runs) {
  UniqueFd fd(::memfd_create("pages", MFD_CLOEXEC));
  if (!fd) {
    return SyscallError(errno, "memfd_create");
  }
  RETURN_IF_ERROR(WriteAll(fd.get(), std::as_bytes(std::span(runs))));
  return fd;
}

}  // namespace

LazyPlan PlanLazyPages(const MemoryLayout& layout, const PageSet& pages,
                       const std::vector<AddressRange>& inherited) {
  LazyPlan plan;
  plan.later.files = plan.at_once.files = pages.files;
  auto area = layout.areas.begin();
  std::uint64_t bytes = 0;
  for (PageSet::Extent extent : pages.extents) {
    while (!extent.range.empty()) {
      while (area != layout.areas.end() && area->range.end <= extent.range.start) ++area;
      PageSet::Extent part = extent;
      if (area !=
          layout.areas.end()) {  // an extent's pages all belong to areas, but for the vDSO's
        const bool within = area->range.start <= extent.range.start;
        part.range.end = std::min(extent.range.end, within ? area->range.end : area->range.start);
      }
      const bool later = extent.lazy && area != layout.areas.end() &&
                         area->range.Contains(part.range) && MayComeLater(*area, layout, inherited);
      (later ? plan.later : plan.at_once).Add(part);
      if (later) bytes += part.range.size();
      if (later && (plan.areas.empty() || plan.areas.back() != area->range)) {
        plan.areas.push_back(area->range);
      }
      extent.offset += part.range.size();
      extent.range.start = part.range.end;
    }
  }
  if (bytes >= kLeastBytes) return plan;
  plan = {};
  plan.at_once = pages;
  return plan;
}

Result<LazyPages> LazyPages::Start(const std::string& program, const ImageSource& source) {
  Result<UniqueFd> device = OpenAt(AT_FDCWD, "/dev/userfaultfd", O_RDWR);
  if (!device.ok()) {
    return FailedPrecondition("lazy pages need /dev/userfaultfd (Linux 6.1) and the right to it: " +
                              ::stasis::Message(device.status()));
  }
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    return SyscallError(errno, "socketpair");
  }
  UniqueFd ours(pair[0]), theirs(pair[1]);
  RETURN_IF_ERROR(Spawn(program, theirs.get()));
  theirs.Reset();
  return LazyPages(source, *std::move(device), std::move(ours));
}

Status LazyPages::Register(RestoredProcess& process, const LazyPlan& plan) {
  ASSIGN_OR_RETURN(const UniqueFd uffd, MakeUserfaultfd(process));
  std::vector<pages::PendingRun> runs;
  for (const PageSet::Extent& extent : plan.later.extents) {
    ASSIGN_OR_RETURN(const std::uint32_t file, SendFile(plan.later.files[extent.file]));
    runs.push_back({extent.range.start, extent.range.end, file, extent.offset});
    bytes_ += extent.range.size();
  }
  ASSIGN_OR_RETURN(const UniqueFd list, ListOf(runs));
  for (const AddressRange& area : plan.areas) {
    uffdio_register request = {};
    request.range = {.start = area.start, .len = area.size()};
    request.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (::ioctl(uffd.get(), UFFDIO_REGISTER, &request) != 0) {
      return SyscallError(errno, "userfaultfd for " + ToText(area));
    }
  }
  const int fds[] = {uffd.get(), process.pidfd.get(), list.get()};
  return Send(socket_.get(), {.kind = MessageKind::kProcess}, fds);
}

Result<UniqueFd> LazyPages::MakeUserfaultfd(RestoredProcess& process) const {
  RemoteSyscalls& remote = *process.remote;
  ASSIGN_OR_RETURN(FdChannel channel, FdChannel::Open(remote, process.pidfd.get()));
  const int device = device_.get();
  ASSIGN_OR_RETURN(const std::vector<int> there, channel.Send(remote, std::span(&device, 1)));
  ASSIGN_OR_RETURN(const std::uint64_t number,
                   remote.Call("USERFAULTFD_IOC_NEW", SYS_ioctl, there.front(), USERFAULTFD_IOC_NEW,
                               O_CLOEXEC | O_NONBLOCK));
  ASSIGN_OR_RETURN(UniqueFd uffd, channel.Take(static_cast<int>(number)));
  RETURN_IF_ERROR(remote.Call("close", SYS_close, number).status());
  RETURN_IF_ERROR(remote.Call("close", SYS_close, there.front()).status());
  RETURN_IF_ERROR(channel.Close(remote));
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = pages::kWantedFeatures;
  if (::ioctl(uffd.get(), UFFDIO_API, &api) != 0) {
    const int error = errno;
    return FailedPrecondition(
        std::string("lazy pages need userfaultfd with all its events, and CAP_SYS_PTRACE: ") +
        std::strerror(error));
  }
  return uffd;
}

Result<std::uint32_t> LazyPages::SendFile(const std::string& name) {
  const auto known = std::ranges::find(files_, name);
  const auto number = static_cast<std::uint32_t>(known - files_.begin());
  if (known != files_.end()) return number;
  ASSIGN_OR_RETURN(const ImagePlace place, source_->Locate(name));
  const int fd = place.fd.get();
  RETURN_IF_ERROR(
      Send(socket_.get(),
           {.kind = MessageKind::kFile, .compressed = place.compressed, .offset = place.offset},
           std::span(&fd, 1)));
  files_.push_back(name);
  return number;
}

Status LazyPages::Begin() {
  pollfd wait = {.fd = socket_.get(), .events = POLLIN, .revents = 0};
  char ready = 0;
  if (::poll(&wait, 1, kReadyTimeoutMs) <= 0 ||
      ::recv(socket_.get(), &ready, sizeof(ready), 0) != sizeof(ready) || ready != pages::kReady) {
    return Unavailable("the page server has ended");
  }
  return Send(socket_.get(), {.kind = MessageKind::kBegin}, {});
}

}  // namespace stasis::engine
