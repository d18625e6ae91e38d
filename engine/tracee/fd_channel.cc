// Source  unix(7), pidfd_getfd(2); tested on 6.18
// Rule    One message carries at most SCM_MAX_FD (253) descriptors, include/net/scm.h.
// Rule    A receiver at its RLIMIT_NOFILE gets fewer and MSG_CTRUNC, never an error
//         (scm_detach_fds()).
#include "engine/tracee/fd_channel.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

namespace stasis::engine {
namespace {

constexpr std::size_t kDescriptorsPerMessage = 253;

// What recvmsg(2) works on in the process: a header that points at the rest.
struct Message {
  msghdr header = {};
  iovec payload = {};
  char byte = 0;  // SOCK_SEQPACKET: a message without bytes would look like the end of the stream
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kDescriptorsPerMessage * sizeof(int))> control;
};

// `message` as it must look when it lies at `address`.
void PointInto(Message& message, std::uint64_t address) {
  const auto at = [&](std::size_t offset) { return reinterpret_cast<void*>(address + offset); };
  message.payload = {.iov_base = at(offsetof(Message, byte)), .iov_len = sizeof(message.byte)};
  message.header.msg_iov = static_cast<iovec*>(at(offsetof(Message, payload)));
  message.header.msg_iovlen = 1;
  message.header.msg_control = at(offsetof(Message, control));
  message.header.msg_controllen = message.control.size();
}

Status SendMessage(int socket, std::span<const int> fds) {
  Message message;
  PointInto(message, reinterpret_cast<std::uint64_t>(&message));
  message.header.msg_controllen = CMSG_SPACE(fds.size_bytes());
  cmsghdr* rights = CMSG_FIRSTHDR(&message.header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(fds.size_bytes());
  std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  if (::sendmsg(socket, &message.header, MSG_NOSIGNAL) < 0) {
    return SyscallError(errno, "sendmsg of " + std::to_string(fds.size()) + " descriptors");
  }
  return OkStatus();
}

// The descriptors in `message`, which recvmsg filled in the process.
std::vector<int> Received(Message& message) {
  PointInto(message, reinterpret_cast<std::uint64_t>(&message));
  cmsghdr rights = {};
  std::memcpy(&rights, message.control.data(), sizeof(rights));
  if (rights.cmsg_level != SOL_SOCKET || rights.cmsg_type != SCM_RIGHTS) return {};
  const std::size_t bytes =
      std::clamp<std::size_t>(rights.cmsg_len, CMSG_LEN(0), message.control.size()) - CMSG_LEN(0);
  std::vector<int> numbers(bytes / sizeof(int));
  std::memcpy(numbers.data(), message.control.data() + CMSG_LEN(0), numbers.size() * sizeof(int));
  return numbers;
}

Result<std::vector<int>> ReceiveMessage(RemoteSyscalls& remote, int number) {
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote.Reserve(sizeof(Message)));
  Message message;
  PointInto(message, address);
  message.control.fill(std::byte{0});
  RETURN_IF_ERROR(
      WriteMemory(remote.tracee().tid(), address, std::as_bytes(std::span(&message, 1))));
  RETURN_IF_ERROR(remote
                      .Call("recvmsg of descriptors", SYS_recvmsg, number, address,
                            MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
                      .status());
  RETURN_IF_ERROR(remote.ReadBack(address, std::as_writable_bytes(std::span(&message, 1))));
  remote.ResetArguments();
  return Received(message);
}

Status CloseAll(RemoteSyscalls& remote, std::span<const int> numbers) {
  for (const int number : numbers) {
    RETURN_IF_ERROR(remote.Call("close", SYS_close, number).status());
  }
  return OkStatus();
}

}  // namespace

Result<UniqueFd> GetFd(int pidfd, int number) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, number, 0)));
  if (!fd) return SyscallError(errno, "pidfd_getfd of descriptor " + std::to_string(number));
  return fd;
}

Result<FdChannel> FdChannel::Open(RemoteSyscalls& remote, int pidfd) {
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t address, remote.Reserve(sizeof(std::array<int, 2>)));
  RETURN_IF_ERROR(
      remote.Call("socketpair", SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, address)
          .status());
  ASSIGN_OR_RETURN(const auto pair, (remote.ReadValue<std::array<int, 2>>(address)));
  remote.ResetArguments();
  Result<UniqueFd> ours = GetFd(pidfd, pair[1]);
  if (!ours.ok()) {
    (void)CloseAll(remote, pair);  // already reporting worse
    return ours.status();
  }
  RETURN_IF_ERROR(CloseAll(remote, std::span(&pair[1], 1)));
  return FdChannel(*std::move(ours), pair[0], pidfd);
}

Result<std::vector<int>> FdChannel::Send(RemoteSyscalls& remote, std::span<const int> our_fds) {
  std::vector<int> numbers;
  while (!our_fds.empty()) {
    const auto batch = our_fds.first(std::min(our_fds.size(), kDescriptorsPerMessage));
    RETURN_IF_ERROR(SendMessage(ours_.get(), batch));
    ASSIGN_OR_RETURN(const std::vector<int> got, ReceiveMessage(remote, number_));
    numbers.insert(numbers.end(), got.begin(), got.end());
    if (got.size() != batch.size()) {
      (void)CloseAll(remote, numbers);  // already reporting worse
      return ResourceExhausted(
          "the process takes no more descriptors after " + std::to_string(numbers.size()) +
          ": its limit of open files (RLIMIT_NOFILE) is too low; raise it in the pod or runtime");
    }
    our_fds = our_fds.subspan(batch.size());
  }
  return numbers;
}

Result<UniqueFd> FdChannel::Take(int remote_fd) const { return GetFd(pidfd_, remote_fd); }

Status FdChannel::MoveTo(RemoteSyscalls& remote, int number) {
  if (number == number_) return OkStatus();
  RETURN_IF_ERROR(remote.Call("dup3 of our socket", SYS_dup3, number_, number, O_CLOEXEC).status());
  const int old = std::exchange(number_, number);
  return CloseAll(remote, std::span(&old, 1));
}

Status FdChannel::Close(RemoteSyscalls& remote) {
  ours_.Reset();
  return CloseAll(remote, std::span(&number_, 1));
}

}  // namespace stasis::engine
