// State    of both ends: termios also locked, size, packet and exclusive mode, lock; owner and mode of the
//          /dev/pts file; the session that it controls and the foreground group
// Image    an FD_TTY a file; "tty-info" once an end: index * 2, with 1 more for /dev/ptmx
// Restore  /dev/ptmx is opened until it gives the number; the other end is opened through it. A hung up one
//          is opened with any number, and its other end closed
// Not here what waits to be read at either end (terminal_data.cc)
// Source   ioctl_tty(2) TIOCGPTN, TIOCGPTPEER, TIOCSPTLCK, pts(4); drivers/tty/pty.c; tested on 6.18
// Rule     The lowest free number is given. It is free again when both ends are closed
// Rule     On /dev/ptmx TIOCGSID and TIOCGPGRP tell of the other end, to anybody
// Rule     TIOCGPTPEER with O_PATH names the other end and does not open it
// Rule     Once the last /dev/pts file is closed /dev/ptmx shows POLLHUP, until one is opened again
#include "engine/files/pseudo_terminal.h"

#include <asm/termbits.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "engine/files/description.h"
#include "engine/files/kept_files.h"
#include "engine/files/terminal_data.h"
#include "engine/files/terminal_settings.h"

namespace stasis::engine {
namespace {

constexpr unsigned long kOpenPeer = 0x5441;    // TIOCGPTPEER, _IO('T', 0x41)
constexpr std::size_t kMostOpened = 1024;      // to reach a number
constexpr std::uint32_t kMaster = 1;           // in the number of an end
constexpr std::uint32_t kFirstSpecial = 1000;  // CRIU's numbers for consoles and the like

std::string Key(std::uint32_t index) { return KeptKey("pty", index); }

// ---- dump ----

// The file below /dev/pts, which is not opened by it.
Result<struct stat> NodeOf(const OpenFile& master, const UserIds& ids) {
  const UniqueFd node(::ioctl(master.borrowed.get(), kOpenPeer, O_PATH | O_CLOEXEC));
  struct stat st = {};
  if (!node || ::fstat(node.get(), &st) != 0) {
    return SyscallError(errno, "the other end of " + NameOf(master));
  }
  ids.ShowInside(st);
  return st;
}

bool IsMaster(const OpenFile& file) {
  return S_ISCHR(file.st.st_mode) && IsMultiplexer(file.st.st_rdev) && (file.flags & O_PATH) == 0;
}

const OpenFile* SlaveAt(const struct stat& node, std::span<const OpenFile> files) {
  const auto found = std::ranges::find_if(files, [&](const OpenFile& file) {
    return S_ISCHR(file.st.st_mode) && file.st.st_rdev == node.st_rdev &&
           file.st.st_dev == node.st_dev && (file.flags & O_PATH) == 0 && !IsHungUp(file);
  });
  return found == files.end() ? nullptr : &*found;
}

Status DumpSession(const OpenFile& master, FileDumpContext& context, image::TtyInfoEntry& info) {
  const int fd = master.borrowed.get();
  pid_t session = 0, group = 0;
  if (::ioctl(fd, TIOCGSID, &session) != 0) return OkStatus();  // it controls none
  const pid_t leader = context.ToNamespacePid(session);
  if (leader == 0) {
    return Unimplemented(NameOf(master) + ": it controls a session outside the tree");
  }
  info.set_sid(static_cast<std::uint32_t>(leader));
  if (::ioctl(fd, TIOCGPGRP, &group) == 0) {
    info.set_pgrp(static_cast<std::uint32_t>(context.ToNamespacePid(group)));
  }
  return OkStatus();
}

// Any of the settings, TIOCGLCKTRMIOS.
bool AnyLocked(const image::TermiosEntry& locked) {
  const auto& characters = locked.c_cc();
  return locked.c_iflag() != 0 || locked.c_oflag() != 0 || locked.c_cflag() != 0 ||
         locked.c_lflag() != 0 || locked.c_line() != 0 ||
         std::ranges::any_of(characters, [](std::uint32_t character) { return character != 0; });
}

void DumpNode(const struct stat& node, image::TtyInfoEntry& info) {
  DumpDevice(node, info);
  info.set_stasis_mode(node.st_mode & 07777);
}

// ---- restore ----

const image::FileEntry* TtyEntry(std::uint32_t id, const FileRestoreContext& context) {
  for (const image::FileEntry& entry : context.entries()) {
    if (entry.type() == image::FD_TTY && entry.tty().tty_info_id() == id) return &entry;
  }
  return nullptr;
}

Result<std::uint32_t> Unlock(int master) {
  int locked = 0;
  std::uint32_t index = 0;
  if (::ioctl(master, TIOCGPTN, &index) != 0 || ::ioctl(master, TIOCSPTLCK, &locked) != 0) {
    return SyscallError(errno, "a new pseudo-terminal");
  }
  return index;
}

Result<UniqueFd> OpenPeer(int master, int flags) {
  UniqueFd slave(::ioctl(master, kOpenPeer, flags | O_NOCTTY | O_CLOEXEC));
  if (!slave) {
    return SyscallError(errno, "open the other end of a pseudo-terminal");
  }
  return slave;
}

Result<UniqueFd> OpenMaster(const std::string& path, int flags, std::uint32_t index,
                            FileRestoreContext& context) {
  std::vector<UniqueFd> lower;
  while (lower.size() < kMostOpened) {
    ASSIGN_OR_RETURN(UniqueFd master, context.actor().Open(path, flags | O_NOCTTY, 0));
    struct stat st = {};
    if (::fstat(master.get(), &st) != 0 || !S_ISCHR(st.st_mode) || !IsMultiplexer(st.st_rdev)) {
      return FailedPrecondition(path + " is not the multiplexer of pseudo-terminals here");
    }
    ASSIGN_OR_RETURN(const std::uint32_t got, Unlock(master.get()));
    if (got == index) return master;
    if (got > index) {
      return FailedPrecondition(
          "/dev/pts/" + std::to_string(index) +
          " is taken by another program; end that, or restore in a container");
    }
    lower.push_back(std::move(master));
  }
  return FailedPrecondition("/dev/pts/" + std::to_string(index) + " is out of reach");
}

// The end at /dev/ptmx, made whether or not its own turn has come.
Result<int> Master(std::uint32_t index, FileRestoreContext& context) {
  const std::string key = Key(index);
  if (!IsKept(key, context)) {
    const image::FileEntry* const entry = TtyEntry(index << 1 | kMaster, context);
    if (entry == nullptr) return DataLoss("a terminal without its other end");
    const image::FileEntry* const path = context.Entry(image::FD_REG, entry->tty().regf_id());
    const std::string name = path != nullptr ? path->reg().name() : "/dev/ptmx";
    ASSIGN_OR_RETURN(context.Kept()[key],
                     OpenMaster(name, OpenFlags(entry->tty().flags()), index, context));
  }
  return KeptFd(key, context);
}

Result<UniqueFd> RestoreHungUp(int flags, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const UniqueFd master, context.actor().Open("/dev/ptmx", O_RDWR | O_NOCTTY, 0));
  RETURN_IF_ERROR(Unlock(master.get()).status());
  return OpenPeer(master.get(), flags);
}

Status RestoreLocked(int fd, const image::TtyInfoEntry& info) {
  const image::TermiosEntry& entry = info.termios_locked();
  if (!AnyLocked(entry)) return OkStatus();
  termios2 locked = FromImage(entry);
  locked.c_line = static_cast<cc_t>(entry.c_line());  // whether it is locked
  if (::ioctl(fd, TIOCSLCKTRMIOS, &locked) != 0) {
    return SyscallError(errno, "TIOCSLCKTRMIOS");
  }
  return OkStatus();
}

// What the end at /dev/ptmx has of its own, and what both share.
Status CompleteMaster(int fd, int slave, const image::TtyInfoEntry& info,
                      FileRestoreContext& context) {
  RETURN_IF_ERROR(RestoreTermios(fd, info));
  RETURN_IF_ERROR(RestoreTerminalData(fd, slave, info, context));
  RETURN_IF_ERROR(RestoreLocked(fd, info));
  const winsize size = {.ws_row = static_cast<unsigned short>(info.winsize().ws_row()),
                        .ws_col = static_cast<unsigned short>(info.winsize().ws_col()),
                        .ws_xpixel = static_cast<unsigned short>(info.winsize().ws_xpixel()),
                        .ws_ypixel = static_cast<unsigned short>(info.winsize().ws_ypixel())};
  const int packets = info.packet_mode(), locked = info.locked();
  if (::ioctl(fd, TIOCSWINSZ, &size) != 0 || ::ioctl(fd, TIOCPKT, &packets) != 0 ||
      (info.exclusive() && ::ioctl(fd, TIOCEXCL) != 0) ||
      (locked != 0 && ::ioctl(fd, TIOCSPTLCK, &locked) != 0)) {
    return SyscallError(errno, "settings of a pseudo-terminal");
  }
  return OkStatus();
}

// The other end, which was open at some time.
Status CompleteSlave(int fd, const image::TtyInfoEntry& info, const UserIds& ids) {
  if (info.has_uid() && info.has_gid()) {
    RETURN_IF_ERROR(Annotate(ChangeOwner(fd, info.uid(), info.gid(), ids), "a terminal"));
  }
  if (info.has_stasis_mode() && ::fchmod(fd, info.stasis_mode() & 0777) != 0) {
    return SyscallError(errno, "set the mode of a terminal");
  }
  if (info.exclusive() && ::ioctl(fd, TIOCEXCL) != 0) {
    return SyscallError(errno, "TIOCEXCL");
  }
  return OkStatus();
}

}  // namespace

const OpenFile* MasterOf(dev_t device, std::uint32_t index, std::span<const OpenFile> files) {
  const auto found = std::ranges::find_if(files, [&](const OpenFile& file) {
    std::uint32_t number = 0;
    if (!IsMaster(file) || ::ioctl(file.borrowed.get(), TIOCGPTN, &number) != 0 ||
        number != index) {
      return false;
    }
    const Result<struct stat> node = NodeOf(file, {});  // a container has numbers of its own
    return node.ok() && node->st_dev == device;
  });
  return found == files.end() ? nullptr : &*found;
}

const OpenFile* MasterOf(const OpenFile& slave, std::span<const OpenFile> files) {
  return MasterOf(slave.st.st_dev, PtsIndex(slave.st.st_rdev), files);
}

bool IsHungUp(const OpenFile& file) {
  termios2 settings = {};
  return ::ioctl(file.borrowed.get(), TCGETS2, &settings) != 0 && errno == EIO;
}

Result<std::uint32_t> DumpPseudoTerminal(const OpenFile& master, FileDumpContext& context) {
  const int fd = master.borrowed.get();
  std::uint32_t index = 0;
  int locked = 0, packets = 0;
  if (::ioctl(fd, TIOCGPTN, &index) != 0 || ::ioctl(fd, TIOCGPTLCK, &locked) != 0 ||
      ::ioctl(fd, TIOCGPKT, &packets) != 0) {
    return SyscallError(errno, "settings of " + NameOf(master));
  }
  if (index << 1 >= kFirstSpecial) {
    return Unimplemented(NameOf(master) + ": a pseudo-terminal of number " + std::to_string(index));
  }
  ASSIGN_OR_RETURN(const struct stat node, NodeOf(master, context.ids()));
  const OpenFile* const slave = SlaveAt(node, context.files());
  ASSIGN_OR_RETURN(image::TtyInfoEntry own, DumpSettings(fd, index << 1 | kMaster, index));
  own.set_locked(locked != 0);
  own.set_packet_mode(packets != 0);
  DumpNode(master.st, own);
  RETURN_IF_ERROR(DumpLocked(fd, own));
  ASSIGN_OR_RETURN(const short poll, PollNow(fd, 0));
  if ((poll & POLLHUP) != 0) own.set_stasis_hung_up(true);

  const int either = slave != nullptr ? slave->borrowed.get() : fd;
  ASSIGN_OR_RETURN(image::TtyInfoEntry other, DumpSettings(either, index << 1, index));
  if (slave == nullptr) other.set_exclusive(false);
  RETURN_IF_ERROR(DumpLocked(either, other));
  RETURN_IF_ERROR(DumpSession(master, context, other));
  DumpNode(node, other);
  const TerminalEnds ends = {.master = master,
                             .slave = slave,
                             .node = node,
                             .index = index,
                             .packets = packets != 0,
                             .locked_settings = AnyLocked(own.termios_locked()),
                             .hung_up = own.stasis_hung_up()};
  RETURN_IF_ERROR(DumpTerminalData(ends, context));
  context.AddRecord("tty-info", own.SerializeAsString(), "");
  context.AddRecord("tty-info", other.SerializeAsString(), "");
  return own.id();
}

Result<std::uint32_t> DumpHungUp(const OpenFile& file, FileDumpContext& context) {
  const std::uint32_t index = PtsIndex(file.st.st_rdev);
  const auto is_first = [&] {
    for (const OpenFile& other : context.files()) {
      if (S_ISCHR(other.st.st_mode) && other.st.st_rdev == file.st.st_rdev && IsHungUp(other)) {
        return other.id == file.id;
      }
    }
    return true;
  };
  const bool number_is_used = std::ranges::any_of(context.files(), [&](const OpenFile& other) {
    std::uint32_t number = 0;
    return IsMaster(other) && ::ioctl(other.borrowed.get(), TIOCGPTN, &number) == 0 &&
           number == index;
  });
  if (number_is_used || !is_first()) return index << 1;
  image::TtyInfoEntry info;
  info.set_id(index << 1);
  info.set_type(image::TTY_PTY);
  info.set_locked(false);
  info.set_exclusive(false);
  info.set_packet_mode(false);
  info.set_sid(0);
  info.set_pgrp(0);
  DumpNode(file.st, info);
  info.mutable_pty()->set_index(index);
  context.AddRecord("tty-info", info.SerializeAsString(), "");
  return info.id();
}

bool IsPseudoTerminal(const image::TtyFileEntry& tty, const FileRestoreContext& context) {
  if (tty.stasis_hung_up()) return true;
  return tty.tty_info_id() < kFirstSpecial &&
         TtyEntry(tty.tty_info_id() | kMaster, context) != nullptr;
}

Result<UniqueFd> RestorePseudoTerminal(const image::TtyFileEntry& tty,
                                       FileRestoreContext& context) {
  const int flags = OpenFlags(tty.flags());
  UniqueFd fd;
  if (tty.stasis_hung_up()) {
    ASSIGN_OR_RETURN(fd, RestoreHungUp(flags, context));
  } else {
    ASSIGN_OR_RETURN(const int master, Master(tty.tty_info_id() >> 1, context));
    const bool is_master = (tty.tty_info_id() & kMaster) != 0;
    const std::uint32_t index = tty.tty_info_id() >> 1;
    ASSIGN_OR_RETURN(fd,
                     is_master ? GiveKept(Key(index), tty.id(), context) : OpenPeer(master, flags));
  }
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), tty.flags()));
  return fd;
}

Status CompletePseudoTerminals(FileRestoreContext& context) {
  for (const image::FileEntry& entry : context.entries()) {
    const std::uint32_t id = entry.tty().tty_info_id();
    if (entry.type() != image::FD_TTY || id >= kFirstSpecial || (id & kMaster) == 0) continue;
    const int master = KeptFd(Key(id >> 1), context);
    if (master < 0) continue;
    ASSIGN_OR_RETURN(const image::TtyInfoEntry own, TerminalOf(id, context));
    const Result<image::TtyInfoEntry> other = TerminalOf(id & ~kMaster, context);
    const bool was_open = own.stasis_hung_up() || TtyEntry(id & ~kMaster, context) != nullptr;
    UniqueFd slave;
    if (was_open || (other.ok() && other->sid() != 0)) {
      ASSIGN_OR_RETURN(slave, OpenPeer(master, O_RDWR | O_NONBLOCK));
      if (other.ok()) RETURN_IF_ERROR(CompleteSlave(slave.get(), *other, context.ids()));
    }
    RETURN_IF_ERROR(CompleteMaster(master, slave.get(), own, context));
  }
  return OkStatus();
}

std::string MachineTerminalKey(std::uint32_t id) {
  return "terminal of the machine " + std::to_string(id);
}

Result<std::vector<ControllingTerminal>> ControllingTerminals(FileRestoreContext& context) {
  std::vector<ControllingTerminal> terminals;
  ASSIGN_OR_RETURN(const auto records, context.Records("tty-info"));
  for (const FileRestoreContext::Record& record : records) {
    image::TtyInfoEntry info;
    if (!info.ParsePartialFromString(record.message) || !info.IsInitialized()) {
      return DataLoss("tty-info: a record does not parse");
    }
    const auto of_machine = context.Kept().find(MachineTerminalKey(info.id()));
    if (info.sid() != 0 && of_machine != context.Kept().end()) {
      terminals.push_back({.session = static_cast<pid_t>(info.sid()),
                           .foreground = static_cast<pid_t>(info.pgrp()),
                           .slave = std::move(of_machine->second)});
      context.Kept().erase(of_machine);
      continue;
    }
    const int master = KeptFd(Key(info.id() >> 1), context);
    if (info.sid() == 0 || (info.id() & kMaster) != 0 || master < 0) continue;
    ControllingTerminal terminal = {.session = static_cast<pid_t>(info.sid()),
                                    .foreground = static_cast<pid_t>(info.pgrp()),
                                    .slave = {}};
    ASSIGN_OR_RETURN(terminal.slave, OpenPeer(master, O_RDWR));
    terminals.push_back(std::move(terminal));
  }
  return terminals;
}

}  // namespace stasis::engine
