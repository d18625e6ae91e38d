// Source   socket(7), unix(7), network_namespaces(7), net/core/sock.c; tested on 6.18
#include "engine/files/socket.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <array>
#include <cerrno>
#include <vector>

#include "engine/base/io.h"
#include "engine/base/namespace.h"

namespace stasis::engine {
namespace {

constexpr int kBufLock = 72;               // SO_BUF_LOCK, Linux 5.15
constexpr std::uint32_t kSendBufLock = 1;  // SOCK_SNDBUF_LOCK
constexpr std::uint32_t kReceiveBufLock = 2;
constexpr std::uint32_t kFreePriority = 6;  // above it needs CAP_NET_ADMIN, socket(7)
constexpr std::size_t kFilterLimit = BPF_MAXINSNS;

Status DumpTimeouts(int fd, image::SkOptsEntry& options) {
  ASSIGN_OR_RETURN(const timeval send, SocketOption<timeval>(fd, SOL_SOCKET, SO_SNDTIMEO));
  options.set_so_snd_tmo_sec(static_cast<std::uint64_t>(send.tv_sec));
  options.set_so_snd_tmo_usec(static_cast<std::uint64_t>(send.tv_usec));
  ASSIGN_OR_RETURN(const timeval receive, SocketOption<timeval>(fd, SOL_SOCKET, SO_RCVTIMEO));
  options.set_so_rcv_tmo_sec(static_cast<std::uint64_t>(receive.tv_sec));
  options.set_so_rcv_tmo_usec(static_cast<std::uint64_t>(receive.tv_usec));
  return OkStatus();
}

Status DumpBuffers(int fd, image::SkOptsEntry& options) {
  ASSIGN_OR_RETURN(const auto send, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_SNDBUF));
  options.set_so_sndbuf(send);
  ASSIGN_OR_RETURN(const auto receive, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_RCVBUF));
  options.set_so_rcvbuf(receive);
  if (const auto lock = SocketOption<std::uint32_t>(fd, SOL_SOCKET, kBufLock); lock.ok()) {
    options.set_so_buf_lock(*lock);
  }
  return OkStatus();
}

Status DumpFlags(int fd, int family, image::SkOptsEntry& options) {
  using Set = void (image::SkOptsEntry::*)(bool);
  constexpr std::array<std::pair<int, Set>, 6> kFlags = {{
      {SO_REUSEADDR, &image::SkOptsEntry::set_reuseaddr},
      {SO_REUSEPORT, &image::SkOptsEntry::set_so_reuseport},
      {SO_KEEPALIVE, &image::SkOptsEntry::set_so_keepalive},
      {SO_BROADCAST, &image::SkOptsEntry::set_so_broadcast},
      {SO_DONTROUTE, &image::SkOptsEntry::set_so_dontroute},
      {SO_NO_CHECK, &image::SkOptsEntry::set_so_no_check},
  }};
  for (const auto& [name, set] : kFlags) {
    ASSIGN_OR_RETURN(const int value, SocketOption(fd, SOL_SOCKET, name));
    (options.*set)(value != 0);
  }
  // Since Linux 6.16 other families do not know these.
  if (family == AF_UNIX) {
    ASSIGN_OR_RETURN(const int credentials, SocketOption(fd, SOL_SOCKET, SO_PASSCRED));
    options.set_so_passcred(credentials != 0);
    ASSIGN_OR_RETURN(const int security, SocketOption(fd, SOL_SOCKET, SO_PASSSEC));
    options.set_so_passsec(security != 0);
  }
  return OkStatus();
}

Status DumpNumbers(const OpenFile& file, image::SkOptsEntry& options) {
  const int fd = file.borrowed.get();
  ASSIGN_OR_RETURN(const auto priority, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_PRIORITY));
  ASSIGN_OR_RETURN(const auto mark, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_MARK));
  if ((priority > kFreePriority || mark != 0) && SocketFamily(file) == AF_UNIX) {
    return Unimplemented(NameOf(file) +
                         ": SO_MARK and priorities above 6 of unix sockets cannot be "
                         "checkpointed yet");
  }
  options.set_so_priority(priority);
  if (mark != 0) options.set_so_mark(mark);
  ASSIGN_OR_RETURN(const auto low, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_RCVLOWAT));
  options.set_so_rcvlowat(low);
  ASSIGN_OR_RETURN(const auto inlined, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_OOBINLINE));
  options.set_so_oobinline(inlined);
  ASSIGN_OR_RETURN(const linger lingers, SocketOption<linger>(fd, SOL_SOCKET, SO_LINGER));
  if (lingers.l_onoff != 0) options.set_so_linger(static_cast<std::uint32_t>(lingers.l_linger));
  return OkStatus();
}

Status DumpDevice(int fd, image::SkOptsEntry& options) {
  std::array<char, IFNAMSIZ> name = {};
  socklen_t length = name.size();
  if (::getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name.data(), &length) != 0) {
    return SyscallError(errno, "SO_BINDTODEVICE");
  }
  if (length > 0) options.set_so_bound_dev(name.data());
  return OkStatus();
}

Status DumpFilter(const OpenFile& file, image::SkOptsEntry& options) {
  const Result<std::vector<sock_filter>> program = SocketFilter(file.borrowed.get());
  if (!program.ok()) return Annotate(program.status(), NameOf(file));
  for (const sock_filter& step : *program) {
    options.add_so_filter(std::uint64_t{step.code} << 48 | std::uint64_t{step.jt} << 40 |
                          std::uint64_t{step.jf} << 32 | step.k);
  }
  return OkStatus();
}

Status RestoreBuffers(int fd, const image::SkOptsEntry& options) {
  // Only what a program set: a size that is set here would stop the kernel's own tuning. The kernel
  // doubles what it is given. Not SO_SNDBUFFORCE: the limits of the machine hold for an archive
  // too.
  if ((options.so_buf_lock() & kSendBufLock) != 0) {
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_SNDBUF, options.so_sndbuf() / 2));
  }
  if ((options.so_buf_lock() & kReceiveBufLock) != 0) {
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_RCVBUF, options.so_rcvbuf() / 2));
  }
  return OkStatus();
}

Status RestoreTimeouts(int fd, const image::SkOptsEntry& options) {
  const timeval send = {.tv_sec = static_cast<time_t>(options.so_snd_tmo_sec()),
                        .tv_usec = static_cast<suseconds_t>(options.so_snd_tmo_usec())};
  const timeval receive = {.tv_sec = static_cast<time_t>(options.so_rcv_tmo_sec()),
                           .tv_usec = static_cast<suseconds_t>(options.so_rcv_tmo_usec())};
  RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_SNDTIMEO, send));
  return SetSocketOption(fd, SOL_SOCKET, SO_RCVTIMEO, receive);
}

Status RestoreFilter(int fd, const image::SkOptsEntry& options) {
  if (options.so_filter_size() == 0) return OkStatus();
  const auto count = static_cast<std::size_t>(options.so_filter_size());
  if (count > kFilterLimit) return InvalidArgument("a socket filter of too many instructions");
  std::vector<sock_filter> program;
  for (const std::uint64_t word : options.so_filter()) {
    program.push_back({.code = static_cast<std::uint16_t>(word >> 48),
                       .jt = static_cast<std::uint8_t>(word >> 40),
                       .jf = static_cast<std::uint8_t>(word >> 32),
                       .k = static_cast<std::uint32_t>(word)});
  }
  return SetSocketFilter(fd, program);
}

Result<struct stat> NamespaceOf(int fd) {
  const UniqueFd ns(::ioctl(fd, SIOCGSKNS));
  struct stat st = {};
  if (!ns || ::fstat(ns.get(), &st) != 0) {
    return SyscallError(errno, "the network namespace of a socket (SIOCGSKNS, CAP_NET_ADMIN)");
  }
  return st;
}

}  // namespace

int SocketFamily(const OpenFile& file) {
  if (!S_ISSOCK(file.st.st_mode)) return -1;
  return SocketOption(file.borrowed.get(), SOL_SOCKET, SO_DOMAIN).value_or(-1);
}

// Lengths of SO_GET_FILTER are counts of instructions.
Result<std::vector<sock_filter>> SocketFilter(int fd) {
  socklen_t count = 0;
  std::vector<sock_filter> program;
  // Without room the kernel tells the count alone.
  // NOLINTNEXTLINE(clang-analyzer-unix.StdCLibraryFunctions)
  int failed = ::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &count);
  if (failed == 0 && count > 0) {
    program.resize(count);
    failed = ::getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program.data(), &count);
  }
  if (failed != 0) return Unimplemented("its filter cannot be read");  // EACCES: an eBPF program
  return program;
}

Status SetSocketFilter(int fd, std::span<const sock_filter> program) {
  if (program.empty()) {
    const Status status = SetSocketOption(fd, SOL_SOCKET, SO_DETACH_FILTER, 0);
    return ErrnoOf(status) == ENOENT ? OkStatus() : status;  // there was none
  }
  const sock_fprog filter = {.len = static_cast<unsigned short>(program.size()),
                             .filter = const_cast<sock_filter*>(program.data())};
  return SetSocketOption(fd, SOL_SOCKET, SO_ATTACH_FILTER, filter);
}

Result<image::SkOptsEntry> DumpSocketOptions(const OpenFile& file) {
  image::SkOptsEntry options;
  const int fd = file.borrowed.get();
  RETURN_IF_ERROR(Annotate(DumpTimeouts(fd, options), NameOf(file)));
  RETURN_IF_ERROR(Annotate(DumpBuffers(fd, options), NameOf(file)));
  RETURN_IF_ERROR(Annotate(DumpFlags(fd, SocketFamily(file), options), NameOf(file)));
  RETURN_IF_ERROR(DumpNumbers(file, options));
  RETURN_IF_ERROR(Annotate(DumpDevice(fd, options), NameOf(file)));
  RETURN_IF_ERROR(DumpFilter(file, options));
  return options;
}

Status RestoreOptionsBeforeBind(int fd, const image::SkOptsEntry& options) {
  if (options.so_reuseport()) RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_REUSEPORT, 1));
  const std::string& device = options.so_bound_dev();
  if (device.empty()) return OkStatus();
  if (::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device.data(),
                   static_cast<socklen_t>(device.size())) != 0) {
    return SyscallError(errno, "bind a socket to network interface " + device.substr(0, IFNAMSIZ));
  }
  return OkStatus();
}

Status SetOptionByActor(FileActor& actor, int fd, int level, int name,
                        std::span<const std::byte> value) {
  const Status status = actor.SetOption(fd, level, name, value);
  if (ErrnoOf(status) != EPERM && ErrnoOf(status) != EACCES) return status;
  return FailedPrecondition("option " + std::to_string(name) + " of level " +
                            std::to_string(level) +
                            " of a socket, which the program may not set here (CAP_NET_ADMIN)");
}

Status RestorePrivilegedOptions(int fd, const image::SkOptsEntry& options, FileActor& actor) {
  const auto set = [&](int name, std::uint32_t value) {
    return SetOptionByActor(actor, fd, SOL_SOCKET, name, std::as_bytes(std::span(&value, 1)));
  };
  if (options.so_mark() != 0) RETURN_IF_ERROR(set(SO_MARK, options.so_mark()));
  if (options.so_priority() <= kFreePriority) return OkStatus();
  return set(SO_PRIORITY, options.so_priority());
}

Status RestoreSocketOptions(int fd, const image::SkOptsEntry& options) {
  // The agent could set these for anybody; the container may only have what it could set itself.
  ASSIGN_OR_RETURN(const auto mark, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_MARK));
  ASSIGN_OR_RETURN(const auto priority, SocketOption<std::uint32_t>(fd, SOL_SOCKET, SO_PRIORITY));
  if (options.so_mark() != mark ||
      (options.so_priority() > kFreePriority && options.so_priority() != priority)) {
    return InvalidArgument("a socket with SO_MARK or a priority above 6, which need CAP_NET_ADMIN");
  }
  RETURN_IF_ERROR(RestoreBuffers(fd, options));
  RETURN_IF_ERROR(RestoreTimeouts(fd, options));
  const std::pair<int, int> settings[] = {
      {SO_REUSEADDR, options.reuseaddr()},
      {SO_KEEPALIVE, options.so_keepalive()},
      {SO_BROADCAST, options.so_broadcast()},
      {SO_DONTROUTE, options.so_dontroute()},
      {SO_NO_CHECK, options.so_no_check()},
      {SO_PRIORITY, static_cast<int>(options.so_priority())},
      {SO_OOBINLINE, options.so_oobinline() != 0},
      {SO_PASSCRED, options.so_passcred()},
      {SO_PASSSEC, options.so_passsec()},
  };
  for (const auto& [name, wanted] : settings) {
    const Result<int> now = SocketOption(fd, SOL_SOCKET, name);
    if (now.ok() ? *now == wanted : wanted == 0) continue;  // not every family knows every option
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, name, wanted));
  }
  if (options.so_rcvlowat() > 1) {
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_RCVLOWAT, options.so_rcvlowat()));
  }
  if (options.has_so_linger()) {
    const linger lingers = {.l_onoff = 1, .l_linger = static_cast<int>(options.so_linger())};
    RETURN_IF_ERROR(SetSocketOption(fd, SOL_SOCKET, SO_LINGER, lingers));
  }
  return RestoreFilter(fd, options);
}

Result<std::uint64_t> NetworkOf(const OpenFile& file) {
  const Result<struct stat> socket = NamespaceOf(file.borrowed.get());
  if (!socket.ok()) return Annotate(socket.status(), NameOf(file));
  return socket->st_ino;
}

Result<std::string> ReadNetFile(const OpenFile& file, const std::string& name) {
  const std::string holder = "/proc/" + std::to_string(file.pid);
  ASSIGN_OR_RETURN(const std::uint64_t network, NetworkOf(file));
  struct stat st = {};
  if (::stat((holder + "/ns/net").c_str(), &st) == 0 && st.st_ino == network) {
    return ReadFileAt(AT_FDCWD, holder + "/net/" + name);
  }
  std::string text;
  const UniqueFd ns(::ioctl(file.borrowed.get(), SIOCGSKNS));
  if (!ns) return SyscallError(errno, "SIOCGSKNS " + NameOf(file));
  RETURN_IF_ERROR(InNamespace(ns.get(), CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(text, ReadFileAt(AT_FDCWD, "/proc/thread-self/net/" + name));
    return OkStatus();
  }));
  return text;
}

Result<UniqueFd> NetlinkSocketBeside(const OpenFile& file, int protocol) {
  const UniqueFd ns(::ioctl(file.borrowed.get(), SIOCGSKNS));
  if (!ns) {
    return SyscallError(errno, "SIOCGSKNS " + NameOf(file));
  }
  UniqueFd made;
  RETURN_IF_ERROR(InNamespace(ns.get(), CLONE_NEWNET, [&]() -> Status {
    made.Reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
    return made ? OkStatus() : SyscallError(errno, "netlink socket");
  }));
  return made;
}

}  // namespace stasis::engine
