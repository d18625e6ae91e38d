// Terminals that a runtime or shell gave to the tree: the console of a container with `tty: true`, and the
// terminal that a program on the host was started from. Also /dev/tty, the controlling one by name.
//
// State    how it is open; of the terminal its settings (termios), size, and foreground process group
// Image    FD_TTY for the open file, FD_REG for its path, "tty-info" once a terminal
// Restore  the tree gets the terminal that its new root has as descriptor 0, 1 or 2, opened again for each
//          open file; the settings are put into force there. The size is for who looks at it to say
// Lost     input that was typed and not yet read, output that the other end had not yet taken
// Not here terminals whose other end (/dev/ptmx) is in the tree, and consoles of machines: refused. Which
//          terminal controls a session is inherited: only the root's session may have one (dump_tree.cc)
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
#include "engine/proc/task.h"

namespace stasis::engine {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kConsoles = 4, kTtyDevices = 5, kFirstPts = 136, kLastPts = 143;
constexpr unsigned kCurrent = 0, kMultiplexer = 2;  // minors of 5: /dev/tty, /dev/ptmx
constexpr std::uint32_t kCurrentId = 1006;          // CRIU's number for /dev/tty

bool IsPts(dev_t device) { return major(device) >= kFirstPts && major(device) <= kLastPts; }
bool IsCurrent(dev_t device) { return major(device) == kTtyDevices && minor(device) == kCurrent; }

// The number below /dev/pts, which runs on from one major to the next.
std::uint32_t PtsIndex(dev_t device) {
  constexpr unsigned kMinors = 256;
  return (major(device) - kFirstPts) * kMinors + minor(device);
}

bool Owns(const OpenFile& file) {
  if (!S_ISCHR(file.st.st_mode) || (file.flags & O_PATH) != 0) return false;
  const unsigned number = major(file.st.st_rdev);
  return number == kConsoles || number == kTtyDevices || IsPts(file.st.st_rdev);
}

// Is the other end in the tree? Then it would be ours to make.
bool HasMasterInTree(const OpenFile& file, const FileDumpContext& context) {
  return std::ranges::any_of(context.files(), [&](const OpenFile& other) {
    unsigned index = 0;
    return S_ISCHR(other.st.st_mode) && other.st.st_rdev == makedev(kTtyDevices, kMultiplexer) &&
           ::ioctl(other.borrowed.get(), TIOCGPTN, &index) == 0 &&
           index == PtsIndex(file.st.st_rdev);
  });
}

void ToImage(const termios2& settings, image::TermiosEntry& entry) {
  entry.set_c_iflag(settings.c_iflag);
  entry.set_c_oflag(settings.c_oflag);
  entry.set_c_cflag(settings.c_cflag);
  entry.set_c_lflag(settings.c_lflag);
  entry.set_c_line(settings.c_line);
  entry.set_c_ispeed(settings.c_ispeed);
  entry.set_c_ospeed(settings.c_ospeed);
  for (const cc_t character : settings.c_cc) entry.add_c_cc(character);
}

// Session and foreground group of the terminal, as the tree knows them, when it controls the holder's.
Status DumpJobControl(const OpenFile& file, FileDumpContext& context, image::TtyInfoEntry& info) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(file.pid) + "/stat"));
  ASSIGN_OR_RETURN(const TaskStat stat, ParseTaskStat(text));
  // The kernel's new_encode_dev().
  const auto number = static_cast<unsigned>(stat.tty_nr);
  const dev_t controlling =
      makedev(number >> 8 & 0xfff, (number & 0xff) | (number >> 12 & 0xfff00));
  if (controlling != file.st.st_rdev) return OkStatus();
  info.set_sid(static_cast<std::uint32_t>(context.ToNamespacePid(stat.session)));
  info.set_pgrp(static_cast<std::uint32_t>(context.ToNamespacePid(stat.tpgid)));
  return OkStatus();
}

// Adds the terminal's own record, and gives its foreground group (0: none of the tree's).
Result<std::uint32_t> DumpInfo(const OpenFile& file, FileDumpContext& context, std::uint32_t id) {
  const int fd = file.borrowed.get();
  image::TtyInfoEntry info;
  info.set_id(id);
  info.set_type(image::TTY_PTY);
  info.set_locked(false);
  info.set_packet_mode(false);
  info.set_sid(0);
  info.set_pgrp(0);
  info.set_rdev(static_cast<std::uint32_t>(file.st.st_rdev));
  info.set_dev(static_cast<std::uint32_t>(file.st.st_dev));
  info.set_uid(file.st.st_uid);
  info.set_gid(file.st.st_gid);
  info.mutable_pty()->set_index(PtsIndex(file.st.st_rdev));
  int exclusive = 0;
  termios2 settings = {};
  winsize size = {};
  int waiting = 0;
  if (::ioctl(fd, TIOCGEXCL, &exclusive) != 0 || ::ioctl(fd, TCGETS2, &settings) != 0 ||
      ::ioctl(fd, TIOCGWINSZ, &size) != 0 || ::ioctl(fd, FIONREAD, &waiting) != 0) {
    return SyscallError(errno, "settings of terminal " + NameOf(file));
  }
  info.set_exclusive(exclusive != 0);
  ToImage(settings, *info.mutable_termios());
  info.mutable_winsize()->set_ws_row(size.ws_row);
  info.mutable_winsize()->set_ws_col(size.ws_col);
  info.mutable_winsize()->set_ws_xpixel(size.ws_xpixel);
  info.mutable_winsize()->set_ws_ypixel(size.ws_ypixel);
  if (waiting > 0) {
    context.Note(NameOf(file) + ": " + std::to_string(waiting) +
                 " bytes of input that nobody has read will be gone");
  }
  RETURN_IF_ERROR(DumpJobControl(file, context, info));
  context.AddRecord("tty-info", info.SerializeAsString(), "");
  return info.pgrp();
}

Status CheckSupported(const OpenFile& file, const FileDumpContext& context) {
  if (IsCurrent(file.st.st_rdev)) return OkStatus();
  if (!IsPts(file.st.st_rdev)) {
    const bool master = file.st.st_rdev == makedev(kTtyDevices, kMultiplexer);
    return Unimplemented(
        NameOf(file) + (master ? ": a pseudo-terminal made inside" : ": the console of a machine") +
        " cannot be checkpointed yet");
  }
  if (HasMasterInTree(file, context)) {
    return Unimplemented(NameOf(file) +
                         ": a pseudo-terminal made inside cannot be checkpointed yet");
  }
  if (!context.IsExternalStdio(file)) {
    return Unimplemented(
        NameOf(file) +
        ": a terminal whose other end is outside the tree, and which is none of the "
        "root's first three descriptors, cannot be checkpointed");
  }
  return OkStatus();
}

bool IsFirstOfItsTerminal(const OpenFile& file, const FileDumpContext& context) {
  const auto first = std::ranges::find_if(context.files(), [&](const OpenFile& other) {
    return Owns(other) && other.st.st_rdev == file.st.st_rdev;
  });
  return first == context.files().end() || first->id == file.id;
}

Result<image::FileEntry> Dump(const OpenFile& file, FileDumpContext& context) {
  RETURN_IF_ERROR(CheckSupported(file, context));
  ASSIGN_OR_RETURN(const PathState state, LookUp(file, context));
  image::FileEntry path = NewEntry(file, image::FD_REG);
  path.set_id(context.NewFileId());
  ASSIGN_OR_RETURN(*path.mutable_reg(), DumpRegEntry(file, path.id(), state.path, context));

  image::FileEntry entry = NewEntry(file, image::FD_TTY);
  image::TtyFileEntry& tty = *entry.mutable_tty();
  RETURN_IF_ERROR(DumpCommon(file, context, tty));
  tty.set_regf_id(path.id());
  const std::uint32_t id = IsCurrent(file.st.st_rdev) ? kCurrentId : PtsIndex(file.st.st_rdev) << 1;
  tty.set_tty_info_id(id);
  context.AddEntry(std::move(path));
  if (IsCurrent(file.st.st_rdev) || !IsFirstOfItsTerminal(file, context)) return entry;
  ASSIGN_OR_RETURN(const std::uint32_t foreground, DumpInfo(file, context, id));
  if (foreground != 0) tty.set_stasis_foreground(foreground);
  return entry;
}

Result<image::TtyInfoEntry> InfoOf(std::uint32_t id, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const auto records, context.Records("tty-info"));
  for (const FileRestoreContext::Record& record : records) {
    image::TtyInfoEntry info;
    if (!info.ParsePartialFromString(record.message) || !info.IsInitialized()) {
      return DataLoss("tty-info: a record does not parse");
    }
    if (info.id() == id) return info;
  }
  return DataLoss("tty-info has no terminal " + std::to_string(id));
}

Status RestoreSettings(int fd, const image::TtyInfoEntry& info) {
  if (!info.has_termios()) return OkStatus();
  const image::TermiosEntry& entry = info.termios();
  termios2 settings = {};
  if (entry.c_cc_size() != static_cast<int>(std::size(settings.c_cc))) {
    return DataLoss("a terminal with " + std::to_string(entry.c_cc_size()) + " control characters");
  }
  settings.c_iflag = entry.c_iflag();
  settings.c_oflag = entry.c_oflag();
  settings.c_cflag = entry.c_cflag();
  settings.c_lflag = entry.c_lflag();
  settings.c_line = N_TTY;  // another line discipline is code of the kernel's that nobody asked for
  settings.c_ispeed = entry.c_ispeed();
  settings.c_ospeed = entry.c_ospeed();
  for (int i = 0; i < entry.c_cc_size(); ++i) {
    settings.c_cc[i] = static_cast<cc_t>(entry.c_cc(i));
  }
  if (::ioctl(fd, TCSETS2, &settings) != 0) {
    return SyscallError(errno, "settings of the terminal");
  }
  return OkStatus();
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
  ASSIGN_OR_RETURN(const image::TtyInfoEntry info, InfoOf(tty.tty_info_id(), context));
  const image::FileEntry* const path = context.Entry(image::FD_REG, tty.regf_id());
  const std::string name = path == nullptr ? "" : path->reg().name();
  const int external = context.ExternalStdio(name);
  termios2 settings = {};
  if (external < 0 || ::ioctl(external, TCGETS2, &settings) != 0) {
    return FailedPrecondition("the program had its starter's terminal (" + name +
                              ") open, and here there is none: restore it with one (tty: true)");
  }
  ASSIGN_OR_RETURN(UniqueFd fd, Reopen(external, flags));
  RETURN_IF_ERROR(RestoreSettings(fd.get(), info));
  RETURN_IF_ERROR(SetStatusFlags(fd.get(), tty.flags()));
  return fd;
}

Status Finish(const image::FileEntry& entry, int fd, ProcessActor& process) {
  if (entry.tty().stasis_foreground() == 0) return OkStatus();
  return process.SetForeground(fd, static_cast<pid_t>(entry.tty().stasis_foreground()));
}

}  // namespace

const FileKind kTerminal = {.name = "terminal",
                            .owns = Owns,
                            .dump = Dump,
                            .type = image::FD_TTY,
                            .restore = Restore,
                            .finish = Finish};

}  // namespace stasis::engine
