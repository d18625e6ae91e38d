// The order of it: what happened to the memory first, who waits for a page second, and one piece in the
// background when nobody does. All in one thread, so that what is pending has one owner.
#include "engine/pages/page_server.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include "engine/base/io.h"

namespace stasis::engine::pages {
namespace {

constexpr std::size_t kMostFds = 3;
std::vector<UniqueFd> DescriptorsOf(msghdr& header) {
  std::vector<UniqueFd> fds;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    std::array<int, kMostFds> numbers = {};
    const std::size_t bytes = std::min(part->cmsg_len - CMSG_LEN(0), sizeof(numbers));
    std::memcpy(numbers.data(), CMSG_DATA(part), bytes);
    for (std::size_t i = 0; i < bytes / sizeof(int); ++i) fds.emplace_back(numbers.at(i));
  }
  return fds;
}

Result<PendingPages> ReadPending(int fd, std::size_t file_count) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) {
    return SyscallError(errno, "fstat of the list of pages");
  }
  std::vector<PendingRun> runs(static_cast<std::size_t>(st.st_size) / sizeof(PendingRun));
  RETURN_IF_ERROR(ReadExactAt(fd, std::as_writable_bytes(std::span(runs)), 0));
  PendingPages pending;
  for (const PendingRun& run : runs) {
    if (run.file >= file_count || !pending.Add(run)) return InvalidArgument("a bad list of pages");
  }
  return pending;
}

}  // namespace

Status PageServer::Run(UniqueFd other_fd, const std::function<Result<UniqueFd>()>& on_other) {
  while (!begun_ || !spaces_.empty()) {
    bool other = false;
    Await(other_fd.get(), other);
    if (other) {
      ASSIGN_OR_RETURN(other_fd, on_other());
    }
    RETURN_IF_ERROR(ReadMessages());
    RETURN_IF_ERROR(Step());
  }
  (void)::send(socket_.get(), &kLoaded, sizeof(kLoaded), MSG_NOSIGNAL);  // they may not care
  return OkStatus();
}

bool PageServer::HasWork() const {
  return std::ranges::any_of(spaces_, [this](const AddressSpace& space) {
    return space.has_faults() || (begun_ && !space.done());
  });
}

void PageServer::Await(int other_fd, bool& other) const {
  std::vector<pollfd> waits;
  waits.push_back({.fd = other_fd, .events = POLLIN, .revents = 0});
  if (!begun_) waits.push_back({.fd = socket_.get(), .events = POLLIN, .revents = 0});
  for (const AddressSpace& space : spaces_) {
    waits.push_back({.fd = space.fd(), .events = POLLIN, .revents = 0});
  }
  if (::poll(waits.data(), waits.size(), HasWork() ? 0 : -1) < 0) return;
  other = waits.front().revents != 0;
}

Status PageServer::ReadMessages() {
  while (!begun_) {
    Message message;
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kMostFds * sizeof(int))> control = {};
    iovec payload = {.iov_base = &message, .iov_len = sizeof(message)};
    msghdr header = {};
    header.msg_iov = &payload;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t got = ::recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    // Said once, and before what waits to be read, when the other end was closed with our kReady unread
    // (unix_release_sock() in net/unix/af_unix.c).
    const bool is_reset = got < 0 && errno == ECONNRESET;
    if (is_reset || (got < 0 && errno == EINTR)) continue;
    if (got < 0 && errno == EAGAIN) return OkStatus();
    if (got < 0) return SyscallError(errno, "recvmsg of the restore");
    if (got == 0) return Cancelled("the restore ended before the program could run");
    if (got != sizeof(message)) return InvalidArgument("a bad message of the restore");
    RETURN_IF_ERROR(Take(message, DescriptorsOf(header)));
  }
  return OkStatus();
}

Status PageServer::Take(const Message& message, std::vector<UniqueFd> fds) {
  switch (message.kind) {
    case MessageKind::kFile:
      if (fds.size() != 1) break;
      return TakeFile(std::move(fds.front()), message);
    case MessageKind::kProcess:
      if (fds.size() != 3) break;
      return TakeProcess(std::move(fds));
    case MessageKind::kBegin:
      begun_ = true;
      return OkStatus();
  }
  return InvalidArgument("a bad message of the restore");
}

Status PageServer::TakeFile(UniqueFd fd, const Message& message) {
  if (message.compressed == 0) {
    files_.push_back({.fd = std::move(fd), .offset = message.offset});
    return OkStatus();
  }
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) return SyscallError(errno, "fstat");
  // The files of a checkpoint are in one archive: its table and the frames read last are kept once.
  std::shared_ptr<const frames::FramedFile>& archive = archives_[{st.st_dev, st.st_ino}];
  if (!archive) {
    ASSIGN_OR_RETURN(archive,
                     frames::FramedFile::Open(fd, std::numeric_limits<std::uint64_t>::max()));
    if (!archive) return InvalidArgument("the archive has no table of its zstd frames");
  }
  files_.push_back({.fd = UniqueFd(), .offset = message.offset, .framed = archive});
  return OkStatus();
}

Status PageServer::TakeProcess(std::vector<UniqueFd> fds) {
  ASSIGN_OR_RETURN(PendingPages pending, ReadPending(fds[2].get(), files_.size()));
  RETURN_IF_ERROR(on_process_(std::move(fds[1])));
  spaces_.emplace_back(std::move(fds[0]), std::move(pending));
  return OkStatus();
}

Status PageServer::Step() {
  // Children come behind, and have their first turn with their parent's.
  const auto on_fork = [this](AddressSpace child) { spaces_.push_back(std::move(child)); };
  for (AddressSpace& space : spaces_) {
    RETURN_IF_ERROR(space.ReadEvents(on_fork));
    RETURN_IF_ERROR(space.ServeFaults(files_));
  }
  if (!begun_ || spaces_.empty()) return OkStatus();
  RETURN_IF_ERROR(spaces_.front().LoadNext(files_));
  std::erase_if(spaces_, [](const AddressSpace& space) { return space.done(); });
  return OkStatus();
}

}  // namespace stasis::engine::pages
