// Terminals that a runtime or shell gave to the tree: the console of a container with `tty: true`, and the
// terminal that a program on the host was started from. Also /dev/tty, the controlling one by name, and the
// terminals that are a machine's: its console, virtual and serial ones.
//
// State    how it is open; of the terminal its settings (termios), size, and foreground process group
// Image    FD_TTY for the open file, FD_REG for its path, "tty-info" once a terminal
// Restore  the tree gets the terminal that its new root has as descriptor 0, 1 or 2, opened again for each
//          open file; the settings are put into force there. The size is for who looks at it to say. Those of
//          a machine are opened by their paths, and control the session that they did
// Lost     input that was typed and not yet read, output that the other end had not yet taken
// Not here terminals whose other end (/dev/ptmx) is in the tree (pseudo_terminal.cc). That such a terminal
//          controls the root's session is inherited
// Source   ioctl_tty(2), pts(4), tty(4), proc_pid_stat(5); tested on 6.18
// Rule     TIOCGPGRP answers only for the caller's own controlling terminal; proc_pid_stat(5) tells it of
//          any (tpgid). TIOCSPGRP by a background process is allowed when SIGTTOU is blocked, as all
//          signals are while calls of ours run. (tty_check_change() in drivers/tty/tty_jobctrl.c)
#include <asm/termbits.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/base/io.h"
#include "engine/files/description.h"
#include "engine/files/file_kind.h"
#include "engine/files/path.h"
#include "engine/files/pseudo_terminal.h"
#include "engine/files/terminal_settings.h"
#include "engine/proc/task.h"

namespace stasis::engine {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kConsoles = 4, kTtyDevices = 5;
constexpr unsigned kCurrent = 0;            // minor of 5: /dev/tty
constexpr unsigned kConsole = 1;            // minor of 5
constexpr unsigned kVirtual = 64;           // minors of 4 below it
constexpr std::uint32_t kCurrentId = 1006;  // CRIU's number for /dev/tty
// Numbers of terminals that CRIU's restore has room for, and pseudo-terminals do not have.
constexpr std::uint32_t kConsoleId = 1002 << 1, kSerialId = 1010, kVirtualId = 1012;

bool IsCurrent(dev_t device) { return device == makedev(kTtyDevices, kCurrent); }

bool Owns(const OpenFile& file) {
  if (!S_ISCHR(file.st.st_mode) || (file.flags & O_PATH) != 0) return false;
  const unsigned number = major(file.st.st_rdev);
  return number == kConsoles || number == kTtyDevices || IsPts(file.st.st_rdev);
}

// Session and foreground group of the terminal, as the tree knows them, when it controls the holder's.
Status DumpJobControl(const OpenFile& file, FileDumpContext& context, image::TtyInfoEntry& info) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(file.pid) + "/stat"));
  ASSIGN_OR_RETURN(const TaskStat stat, ParseTaskStat(text));
  if (TerminalDevice(stat.tty_nr) != file.st.st_rdev) return OkStatus();
  info.set_sid(static_cast<std::uint32_t>(context.ToNamespacePid(stat.session)));
  info.set_pgrp(static_cast<std::uint32_t>(context.ToNamespacePid(stat.tpgid)));
  return OkStatus();
}

// Adds the terminal's own record, and gives its foreground group (0: none of the tree's).
Result<std::uint32_t> DumpInfo(const OpenFile& file, FileDumpContext& context, std::uint32_t id) {
  const int fd = file.borrowed.get();
  Result<image::TtyInfoEntry> settings = DumpSettings(fd, id, PtsIndex(file.st.st_rdev));
  if (!settings.ok()) return Annotate(settings.status(), NameOf(file));
  image::TtyInfoEntry& info = *settings;
  DumpDevice(file.st, info);
  int waiting = 0;
  if (::ioctl(fd, FIONREAD, &waiting) != 0) {
    return SyscallError(errno, "FIONREAD " + NameOf(file));
  }
  if (waiting > 0) {
    context.Note(NameOf(file) + ": " + std::to_string(waiting) +
                 " bytes of input that nobody has read will be gone");
  }
  RETURN_IF_ERROR(DumpJobControl(file, context, info));
  context.AddRecord("tty-info", info.SerializeAsString(), "");
  return info.pgrp();
}

bool IsFirstOfItsTerminal(const OpenFile& file, const FileDumpContext& context) {
  const auto first = std::ranges::find_if(context.files(), [&](const OpenFile& other) {
    return Owns(other) && other.st.st_rdev == file.st.st_rdev;
  });
  return first == context.files().end() || first->id == file.id;
}

bool IsOfMachine(dev_t device) { return IsMachineTerminal(device); }

// Adds the record of a machine's terminal unless it is there, and gives its number.
Result<std::uint32_t> DumpOfMachine(const OpenFile& file, FileDumpContext& context) {
  const unsigned number = minor(file.st.st_rdev);
  const bool console = major(file.st.st_rdev) == kTtyDevices, serial = number >= kVirtual;
  const std::uint32_t id = console ? kConsoleId : (serial ? kSerialId : kVirtualId + number) << 1;
  if (!IsFirstOfItsTerminal(file, context)) return id;
  const bool another = serial && std::ranges::any_of(context.files(), [&](const OpenFile& other) {
                         const dev_t device = other.st.st_rdev;
                         return Owns(other) && major(device) == kConsoles &&
                                minor(device) >= kVirtual && device != file.st.st_rdev;
                       });
  if (another) return Unimplemented(NameOf(file) + ": a second serial terminal");
  Result<image::TtyInfoEntry> settings = DumpSettings(file.borrowed.get(), id, 0);
  if (!settings.ok()) return Annotate(settings.status(), NameOf(file));
  image::TtyInfoEntry& info = *settings;
  RETURN_IF_ERROR(DumpLocked(file.borrowed.get(), info));
  if (info.exclusive()) {
    context.Note(NameOf(file) + ": it will not be open exclusively (TIOCEXCL) any more");
  }
  info.clear_pty();
  info.set_type(console ? image::TTY_CONSOLE : serial ? image::TTY_SERIAL : image::TTY_VT);
  DumpDevice(file.st, info);
  // Not each process that has it open has it as its controlling one.
  for (const OpenFile& other : context.files()) {
    if (info.sid() != 0 || !Owns(other) || other.st.st_rdev != file.st.st_rdev) continue;
    RETURN_IF_ERROR(DumpJobControl(other, context, info));
  }
  context.AddRecord("tty-info", info.SerializeAsString(), "");
  return id;
}

// Whose is the other end?
enum class Kind { kOwn, kMaster, kSlave, kHungUp, kOfStarter, kOfMachine };

Result<Kind> KindOf(const OpenFile& file, const FileDumpContext& context) {
  const dev_t device = file.st.st_rdev;
  if (IsCurrent(device)) return Kind::kOwn;
  if (IsMultiplexer(device)) return Kind::kMaster;
  if (IsOfMachine(device)) return Kind::kOfMachine;
  if (!IsPts(device)) {
    return Unimplemented(NameOf(file) + ": this kind of terminal cannot be checkpointed");
  }
  if (IsHungUp(file)) return Kind::kHungUp;
  if (MasterOf(file, context.files()) != nullptr) return Kind::kSlave;
  if (context.IsExternalStdio(file)) return Kind::kOfStarter;
  return Unimplemented(NameOf(file) +
                       ": a terminal whose other end is outside the tree, and which is none of the "
                       "root's first three descriptors, cannot be checkpointed");
}

// For CRIU, which takes no file of a terminal without a record that has all settings; a restore of ours needs
// none. There are none of one that is hung up.
void DumpCurrent(const OpenFile& file, FileDumpContext& context) {
  const int fd = file.borrowed.get();
  Result<image::TtyInfoEntry> settings = DumpSettings(fd, kCurrentId, 0);
  if (!settings.ok() || !DumpLocked(fd, *settings).ok()) return;
  image::TtyInfoEntry& info = *settings;
  info.set_type(image::TTY_CTTY);
  info.clear_pty();
  DumpDevice(file.st, info);
  context.AddRecord("tty-info", info.SerializeAsString(), "");
}

// The record of the terminal that `file` is, added with its first file; its number.
Status DumpTerminal(const OpenFile& file, Kind kind, FileDumpContext& context,
                    image::TtyFileEntry& tty) {
  std::uint32_t id = PtsIndex(file.st.st_rdev) << 1;
  switch (kind) {
    case Kind::kOwn:
      id = kCurrentId;
      if (IsFirstOfItsTerminal(file, context)) DumpCurrent(file, context);
      break;
    case Kind::kMaster: {
      ASSIGN_OR_RETURN(id, DumpPseudoTerminal(file, context));
      break;
    }
    case Kind::kSlave:
      break;
    case Kind::kHungUp: {
      ASSIGN_OR_RETURN(id, DumpHungUp(file, context));
      tty.set_stasis_hung_up(true);
      break;
    }
    case Kind::kOfMachine: {
      ASSIGN_OR_RETURN(id, DumpOfMachine(file, context));
      break;
    }
    case Kind::kOfStarter:
      if (!IsFirstOfItsTerminal(file, context)) break;
      ASSIGN_OR_RETURN(const std::uint32_t foreground, DumpInfo(file, context, id));
      if (foreground != 0) tty.set_stasis_foreground(foreground);
  }
  tty.set_tty_info_id(id);
  return OkStatus();
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  ASSIGN_OR_RETURN(const Kind kind, KindOf(file, context));
  ASSIGN_OR_RETURN(const PathState state, LookUp(file, context));
  image::FileEntry path = NewEntry(file, image::FD_REG);
  path.set_id(context.NewFileId());
  ASSIGN_OR_RETURN(*path.mutable_reg(), DumpRegEntry(file, path.id(), state.path, context));

  image::FileEntry entry = NewEntry(file, image::FD_TTY);
  image::TtyFileEntry& tty = *entry.mutable_tty();
  RETURN_IF_ERROR(DumpCommon(file, context, tty));
  tty.set_regf_id(path.id());
  context.AddEntry(std::move(path));
  RETURN_IF_ERROR(DumpTerminal(file, kind, context, tty));
  return entry;
}

Result<UniqueFd> OpenOfMachine(const image::TtyFileEntry& tty, const image::TtyInfoEntry& info,
                               const std::string& path, FileRestoreContext& context) {
  // O_NONBLOCK: a serial one would wait for its other side. tty_port_block_til_ready()
  const int flags = OpenFlags(tty.flags()) | O_NOCTTY | O_NONBLOCK;
  Result<UniqueFd> fd = context.actor().Open(path, flags, 0);
  if (!fd.ok()) return Annotate(fd.status(), "open " + path);
  struct stat st = {};
  if (::fstat(fd->get(), &st) != 0) return SyscallError(errno, "fstat " + path);
  if (!S_ISCHR(st.st_mode) || !IsOfMachine(st.st_rdev) || st.st_rdev != info.rdev()) {
    return FailedPrecondition(path + " was another terminal at the checkpoint");
  }
  RETURN_IF_ERROR(RestoreTermios(fd->get(), info));
  RETURN_IF_ERROR(SetStatusFlags(fd->get(), tty.flags()));
  if (info.sid() != 0) {
    ASSIGN_OR_RETURN(context.Kept()[MachineTerminalKey(info.id())], Duplicate(fd->get()));
  }
  return fd;
}

Result<UniqueFd> Restore(const image::FileEntry& entry, FileRestoreContext& context) {
  if (!entry.has_tty()) return DataLoss("no terminal in the entry");
  const image::TtyFileEntry& tty = entry.tty();
  const int flags = OpenFlags(tty.flags()) | O_NOCTTY;
  if (tty.tty_info_id() == kCurrentId) {
    Result<UniqueFd> current = context.actor().Open("/dev/tty", flags, 0);
    if (current.ok()) return current;
    return FailedPrecondition(
        "the program had a controlling terminal open, and here there is none: restore it with one "
        "(tty: true)");
  }
  if (IsPseudoTerminal(tty, context)) return RestorePseudoTerminal(tty, context);
  ASSIGN_OR_RETURN(const image::TtyInfoEntry info, TerminalOf(tty.tty_info_id(), context));
  const image::FileEntry* const path = context.Entry(image::FD_REG, tty.regf_id());
  const std::string name = path == nullptr ? "" : path->reg().name();
  if (info.type() == image::TTY_CONSOLE || info.type() == image::TTY_VT ||
      info.type() == image::TTY_SERIAL) {
    return OpenOfMachine(tty, info, name, context);
  }
  const int external = context.ExternalStdio(name);
  termios2 settings = {};
  if (external < 0 || ::ioctl(external, TCGETS2, &settings) != 0) {
    return FailedPrecondition("the program had its starter's terminal (" + name +
                              ") open, and here there is none: restore it with one (tty: true)");
  }
  ASSIGN_OR_RETURN(UniqueFd fd, Reopen(external, flags));
  RETURN_IF_ERROR(RestoreTermios(fd.get(), info));
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), tty.flags()));
  return fd;
}

Status Finish(const image::FileEntry& entry, int fd, ProcessActor& process) {
  if (entry.tty().stasis_foreground() == 0) return OkStatus();
  return process.SetForeground(fd, static_cast<pid_t>(entry.tty().stasis_foreground()));
}

}  // namespace

bool IsMachineTerminal(dev_t device) {
  return major(device) == kConsoles || device == makedev(kTtyDevices, kConsole);
}

dev_t TerminalDevice(int tty_nr) {
  const auto number = static_cast<unsigned>(tty_nr);
  return makedev(number >> 8 & 0xfff, (number & 0xff) | (number >> 12 & 0xfff00));
}

const FileKind kTerminal = {.name = "terminal",
                            .owns = Owns,
                            .dump = Dump,
                            .type = image::FD_TTY,
                            .restore = Restore,
                            .finish = Finish,
                            .complete = CompletePseudoTerminals};

}  // namespace stasis::engine
