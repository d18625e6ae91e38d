// Source  Documentation/networking/tuntap.rst, linux/if_tun.h; drivers/net/tun.c; tested on 6.18
// Rule    TUNSETIFINDEX gives the number that TUNSETIFF then makes a device with, in the network namespace in which
//         /dev/net/tun was opened. Without TUNSETPERSIST it is gone with the last descriptor that has it.
// Rule    A device with one queue that somebody has open says EBUSY to another.
// Lost    what the program promised to understand (TUNSETOFFLOAD): the kernel does that work itself then
#include "engine/tasks/tun_device.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/io.h"
#include "engine/base/namespace.h"

namespace stasis::engine {
namespace {

constexpr char kDevice[] = "/dev/net/tun";

bool Says(const NetworkDevice& device, std::uint16_t type) {
  const std::string* const bytes = Find(device.data, type);
  return bytes != nullptr && !bytes->empty() && bytes->front() != 0;
}

int OwnerOf(const NetworkDevice& device, std::uint16_t type) {
  return Find(device.data, type) == nullptr ? -1 : static_cast<int>(NumberOf(device.data, type));
}

// As TUNSETIFF takes them.
std::uint32_t FlagsOf(const NetworkDevice& device) {
  const std::string* const type = Find(device.data, IFLA_TUN_TYPE);
  std::uint32_t flags =
      type == nullptr || type->empty() ? IFF_TUN : static_cast<unsigned char>(type->front());
  if (!Says(device, IFLA_TUN_PI)) flags |= IFF_NO_PI;
  if (Says(device, IFLA_TUN_VNET_HDR)) flags |= IFF_VNET_HDR;
  if (Says(device, IFLA_TUN_MULTI_QUEUE)) flags |= IFF_MULTI_QUEUE;
  return flags;
}

ifreq RequestFor(const NetworkDevice& device) {
  ifreq request = {};
  const std::string name = device.name();
  std::memcpy(request.ifr_name, name.data(), std::min<std::size_t>(name.size(), IFNAMSIZ - 1));
  request.ifr_flags = static_cast<short>(FlagsOf(device));
  return request;
}

Status Call(int fd, unsigned long number, void* argument, const char* what) {
  return ::ioctl(fd, number, argument) == 0 ? OkStatus() : SyscallError(errno, what);
}
Status Set(int fd, unsigned long number, unsigned long value, const char* what) {
  return ::ioctl(fd, number, value) == 0 ? OkStatus() : SyscallError(errno, what);
}

// For devices of that network.
Result<UniqueFd> OpenIn(int ns_fd) {
  UniqueFd fd;
  RETURN_IF_ERROR(InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(fd, OpenAt(AT_FDCWD, kDevice, O_RDWR));
    return OkStatus();
  }));
  return fd;
}

// Of one that lasts and that nobody has open.
Result<UniqueFd> Attach(int ns_fd, const NetworkDevice& device) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenIn(ns_fd));
  ifreq request = RequestFor(device);
  RETURN_IF_ERROR(Call(fd.get(), TUNSETIFF, &request, "TUNSETIFF"));
  return fd;
}

}  // namespace

Status ReadTunDevice(int ns_fd, NetworkDevice& device, const FindTun& find) {
  const Status outside = Unimplemented("the network device " + device.name() +
                                       " is open in programs outside of the tree alone");
  Result<UniqueFd> fd = find(device.name());
  if (fd.status().code() == StatusCode::kNotFound) {
    if (!Says(device, IFLA_TUN_PERSIST)) return outside;
    fd = Attach(ns_fd, device);
    if (ErrnoOf(fd.status()) == EBUSY) return outside;
  }
  RETURN_IF_ERROR(fd.status());
  ifreq shown = {};
  int send_bytes = 0, header_bytes = 0;
  RETURN_IF_ERROR(Call(fd->get(), TUNGETIFF, &shown, "TUNGETIFF"));
  RETURN_IF_ERROR(Call(fd->get(), TUNGETSNDBUF, &send_bytes, "TUNGETSNDBUF"));
  RETURN_IF_ERROR(Call(fd->get(), TUNGETVNETHDRSZ, &header_bytes, "TUNGETVNETHDRSZ"));
  sock_fprog filter = {};
  if (::ioctl(fd->get(), TUNGETFILTER, &filter) == 0 && filter.len != 0) {
    return Unimplemented("the network device " + device.name() + " has a filter (TUNATTACHFILTER)");
  }
  image::TunLinkEntry& tun = device.tun.emplace();
  tun.set_flags(static_cast<std::uint16_t>(shown.ifr_flags) & ~std::uint32_t{IFF_DETACH_QUEUE});
  tun.set_owner(OwnerOf(device, IFLA_TUN_OWNER));
  tun.set_group(OwnerOf(device, IFLA_TUN_GROUP));
  tun.set_vnethdr(static_cast<std::uint32_t>(header_bytes));
  tun.set_sndbuf(static_cast<std::uint32_t>(send_bytes));
  return OkStatus();
}

Status MakeTunDevice(int ns_fd, const NetworkDevice& device) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenIn(ns_fd));
  std::uint32_t index = device.index;
  RETURN_IF_ERROR(Call(fd.get(), TUNSETIFINDEX, &index, "TUNSETIFINDEX"));
  ifreq request = RequestFor(device);
  RETURN_IF_ERROR(Call(fd.get(), TUNSETIFF, &request, "TUNSETIFF"));
  RETURN_IF_ERROR(Set(fd.get(), TUNSETPERSIST, 1, "TUNSETPERSIST"));
  for (const auto& [type, call] :
       {std::pair(IFLA_TUN_OWNER, TUNSETOWNER), std::pair(IFLA_TUN_GROUP, TUNSETGROUP)}) {
    const int owner = OwnerOf(device, static_cast<std::uint16_t>(type));
    if (owner >= 0)
      RETURN_IF_ERROR(Set(fd.get(), call, static_cast<unsigned long>(owner), "TUNSETOWNER"));
  }
  if (!device.tun) return OkStatus();
  int send_bytes = static_cast<int>(device.tun->sndbuf());
  int header_bytes = static_cast<int>(device.tun->vnethdr());
  RETURN_IF_ERROR(Call(fd.get(), TUNSETVNETHDRSZ, &header_bytes, "TUNSETVNETHDRSZ"));
  return Call(fd.get(), TUNSETSNDBUF, &send_bytes, "TUNSETSNDBUF");
}

}  // namespace stasis::engine
