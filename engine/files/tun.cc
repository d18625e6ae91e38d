// /dev/net/tun (10:200): a queue of a network device whose packets programs read and write, or none yet.
//
// State    TUNGETIFF: the device's name and kind; IFF_DETACH_QUEUE (TUNSETQUEUE): a queue that gets nothing
// Image    FD_TUNF, and the path as FD_REG under the same id
// Restore  the device is made with the tree's networks (tasks/tun_device.cc) and lasts until the first of these has it
// Refused  one whose device is not in a network of the tree's that is made again
// Lost     packets that nobody has read; filters of a queue
// Source   Documentation/networking/tuntap.rst, linux/if_tun.h; drivers/net/tun.c; tested on 6.18
// Rule     A queue is of the network namespace in which it was opened, which is shown as that of a socket (SIOCGSKNS),
//          and its device may have gone to another one (TUNGETDEVNETNS).
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/path.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {
namespace {

const dev_t kDevice = makedev(10, 200);
constexpr std::uint32_t kPersists = 0x0800;  // in what TUNGETIFF says: IFF_PERSIST

bool Owns(const OpenFile& file) {
  return S_ISCHR(file.st.st_mode) && file.st.st_rdev == kDevice && (file.flags & O_PATH) == 0;
}

Result<ino_t> NetworkBehind(const OpenFile& file, unsigned long call) {
  const UniqueFd ns(::ioctl(file.borrowed.get(), call));
  struct stat st = {};
  if (!ns || ::fstat(ns.get(), &st) != 0) {
    return SyscallError(errno, "the network namespace of " + NameOf(file));
  }
  return st.st_ino;
}

Status CheckNetwork(const OpenFile& file, const std::string& device, const Options& options) {
  ASSIGN_OR_RETURN(const ino_t opened_in, NetworkBehind(file, SIOCGSKNS));
  ASSIGN_OR_RETURN(const ino_t network, NetworkBehind(file, TUNGETDEVNETNS));
  struct stat ours = {};
  const bool is_ours = ::stat("/proc/self/ns/net", &ours) == 0 && ours.st_ino == network;
  if (opened_in == network && !is_ours && options.own_namespaces) return OkStatus();
  return Unimplemented(NameOf(file) + ": its network device " + device +
                       " is in no network namespace that a restore makes again");
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  image::FileEntry entry = NewEntry(file, image::FD_TUNF);
  entry.mutable_tunf()->set_id(file.id);
  ifreq request = {};
  if (::ioctl(file.borrowed.get(), TUNGETIFF, &request) == 0) {
    const std::string device(request.ifr_name, ::strnlen(request.ifr_name, IFNAMSIZ));
    RETURN_IF_ERROR(CheckNetwork(file, device, context.options()));
    entry.mutable_tunf()->set_netdev(device);
    if ((request.ifr_flags & IFF_DETACH_QUEUE) != 0) entry.mutable_tunf()->set_detached(true);
  } else if (errno != EBADFD) {
    return SyscallError(errno, "TUNGETIFF " + NameOf(file));
  }
  ASSIGN_OR_RETURN(const PathState state, LookUp(file, context));
  if (!state.reaches) {
    return Unimplemented(NameOf(file) + ": the path of this device does not lead to it any more");
  }
  image::FileEntry path = NewEntry(file, image::FD_REG);
  ASSIGN_OR_RETURN(*path.mutable_reg(), DumpRegEntry(file, file.id, state.path, context));
  if (path.reg().fown().pid() != 0 || path.reg().fown().signum() != 0) {
    return Unimplemented(NameOf(file) + ": signals from it cannot be checkpointed yet");
  }
  path.mutable_reg()->set_pos(0);  // it counts what was read, and cannot be set
  context.AddEntry(std::move(path));
  return entry;
}

// The device with that name is there: else TUNSETIFF would make one.
Status CheckDevice(const std::string& name, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const UniqueFd socket, context.actor().Socket(AF_INET, SOCK_DGRAM, 0));
  ifreq request = {};
  if (name.size() >= IFNAMSIZ) return DataLoss("a strange name of a network device");
  std::memcpy(request.ifr_name, name.data(), name.size());
  if (::ioctl(socket.get(), SIOCGIFINDEX, &request) == 0) return OkStatus();
  return FailedPrecondition("the network device " + name + " is not here");
}

// What its device is (linux/if_tun.h).
Result<image::TunLinkEntry> DeviceOf(const image::TunfileEntry& tun, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const auto devices,
                   ReadRecords<image::NetDeviceEntry>(context.source(),
                                                      ImageName("netdev", tun.ns_id()), "netdev"));
  const auto device = std::ranges::find(devices, tun.netdev(), &image::NetDeviceEntry::name);
  if (device != devices.end() && device->has_tun()) return device->tun();
  return DataLoss("no record of the network device " + tun.netdev());
}

Status Attach(int fd, const image::TunfileEntry& tun, FileRestoreContext& context) {
  const std::string& name = tun.netdev();
  RETURN_IF_ERROR(CheckDevice(name, context));
  ASSIGN_OR_RETURN(const image::TunLinkEntry device, DeviceOf(tun, context));
  const std::uint32_t flags = device.flags();
  ifreq request = {};
  std::memcpy(request.ifr_name, name.data(), name.size());
  request.ifr_flags = static_cast<short>(flags & ~kPersists);
  if (::ioctl(fd, TUNSETIFF, &request) != 0) return SyscallError(errno, "TUNSETIFF " + name);
  // A new queue does not take that of its device.
  int send_bytes = static_cast<int>(device.sndbuf());
  if (::ioctl(fd, TUNSETSNDBUF, &send_bytes) != 0) {
    return SyscallError(errno, "TUNSETSNDBUF " + name);
  }
  if (tun.detached()) {
    request.ifr_flags = IFF_DETACH_QUEUE;
    if (::ioctl(fd, TUNSETQUEUE, &request) != 0) return SyscallError(errno, "TUNSETQUEUE " + name);
  }
  if ((flags & kPersists) != 0) return OkStatus();
  return ::ioctl(fd, TUNSETPERSIST, 0) == 0 ? OkStatus()
                                            : SyscallError(errno, "TUNSETPERSIST " + name);
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_tunf()) return DataLoss("no tun file in the entry");
  const image::FileEntry* const path = context.Entry(image::FD_REG, entry.id());
  if (path == nullptr || !path->has_reg()) return DataLoss("no path for a tun file");
  RETURN_IF_ERROR(context.EnterMount(path->reg().mnt_id()));
  RETURN_IF_ERROR(context.EnterNetwork(entry.tunf().ns_id()));
  ASSIGN_OR_RETURN(UniqueFd fd, OpenRegEntry(path->reg(), context));
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0 || st.st_rdev != kDevice) {
    return FailedPrecondition(path->reg().name() + " is another device here");
  }
  if (entry.tunf().has_netdev()) RETURN_IF_ERROR(Attach(fd.get(), entry.tunf(), context));
  RETURN_IF_ERROR(context.EnterNetwork(0));
  return fd;
}

}  // namespace

const FileKind kTun = {
    .name = "tun file", .owns = Owns, .dump = Dump, .type = image::FD_TUNF, .restore = Restore};

}  // namespace stasis::engine
