// State    the bytes that wait at either end, in canonical mode also where lines end and the beginning of one
// Dump     nothing shows it but a read: all is taken and put back. The tree stands still meanwhile, nobody outside
//          may have the terminal open, and a kill of ours does not come in between (surviving_step.h)
// Image    "tty-data", once for each end at which something waits; where lines end is a field of ours
// Restore  as the dump puts it back
// Lost     what an output that is stopped has yet to echo, that it is stopped, whether the last byte of a tab was
//          counted for its erasure; of a state that cannot be put back what waits, which the report then says
// Source   ioctl_tty(2), termios(3); drivers/tty/n_tty.c, pty.c; terminal_queue.cc has the rules; tested on 6.18
// Rule     A read in packet mode begins with a byte of its own. TIOCPKT that is set anew forgets a status that
//          waits, which poll(2) shows as POLLPRI
// Rule     Input raises SIGIO at whoever asked for it (O_ASYNC)
// Rule     fdinfo of /dev/ptmx has "tty-index"; each open(2) of it makes a terminal of its own
#include "engine/files/terminal_data.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <utility>

#include "engine/base/io.h"
#include "engine/base/surviving_step.h"
#include "engine/files/description.h"
#include "engine/files/holder_outside.h"
#include "engine/files/terminal_queue.h"
#include "engine/files/terminal_settings.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr unsigned long kOpenPeer = 0x5441;  // TIOCGPTPEER, _IO('T', 0x41)
constexpr std::size_t kMostImageBytes = std::size_t{64} << 10;
// With more than that what comes next may wait in front of the line discipline, unseen.
constexpr int kMuch = 2048;

int Waiting(int fd) {
  int waiting = 0;
  return ::ioctl(fd, FIONREAD, &waiting) == 0 ? waiting : 0;
}

// Are bytes taken as they come, so that it is all the same whether they have been looked at?
bool IsPlain(const termios2& settings) {
  constexpr tcflag_t kActs = ICANON | ISIG | ECHO | ECHONL | EXTPROC;
  constexpr tcflag_t kChanges = IXON | ISTRIP | IUCLC | IGNCR | ICRNL | INLCR | PARMRK | IGNBRK;
  return (settings.c_lflag & kActs) == 0 && (settings.c_iflag & kChanges) == 0;
}

// Both ends of one terminal, of which nobody else takes or gives anything.
struct Exchange {
  int master = -1, slave = -1;
  bool packets = false;
  QuietSettings quiet;
  TerminalQueue at_master = TerminalQueue::WithRoom(), at_slave = TerminalQueue::WithRoom();

  explicit Exchange(const termios2& settings) : quiet(settings) {}

  // System calls only. What was taken is put back whatever goes wrong; the first error.
  int TakeAndPutBack() {
    const int flags = ::fcntl(master, F_GETFL), no = 0, yes = 1;
    if (flags < 0 || ::fcntl(master, F_SETFL, flags | O_NONBLOCK) != 0) return errno;
    int error = packets && ::ioctl(master, TIOCPKT, &no) != 0 ? errno : 0;
    const auto keep = [&error](int next) { error = error != 0 ? error : next; };
    if (error == 0) {
      // Under its own settings: what still comes is echoed, and acted upon, as ever.
      keep(TakeAll(slave, quiet.canonical(), at_slave));
      keep(quiet.Enter(slave));
      if (quiet.canonical() && error == 0) keep(TakeBeginning(slave, quiet, at_slave));
      keep(TakeAll(master, false, at_master));
      keep(Put());
      keep(quiet.Leave(slave));
    }
    if (packets && ::ioctl(master, TIOCPKT, &yes) != 0) keep(errno);
    if (::fcntl(master, F_SETFL, flags) != 0) keep(errno);
    return error;
  }

  // What is too much to be put in is an error, not a wait for ever.
  int PutQuietly() const {
    const int flags = ::fcntl(master, F_GETFL);
    if (flags < 0 || ::fcntl(master, F_SETFL, flags | O_NONBLOCK) != 0) return errno;
    int error = quiet.Enter(slave);
    if (error == 0) error = Put();
    const int left = quiet.Leave(slave);
    const int reset = ::fcntl(master, F_SETFL, flags) == 0 ? 0 : errno;
    return error != 0 ? error : left != 0 ? left : reset;
  }

  int Put() const {
    const int error = quiet.canonical() ? PutLines(slave, master, quiet, at_slave)
                                        : PutBytes(slave, master, at_slave);
    const int other = PutBytes(master, slave, at_master);
    return error != 0 ? error : other;
  }
};

// ---- dump ----

// Does `link`, of a process outside the tree, lead to one of the ends?
bool IsEnd(const std::filesystem::path& link, const TerminalEnds& ends) {
  std::error_code error;
  const std::string name = std::filesystem::read_symlink(link, error).filename();
  struct stat st = {};
  if (name == std::to_string(ends.index)) {
    return ::stat(link.c_str(), &st) == 0 && st.st_rdev == ends.node.st_rdev &&
           st.st_dev == ends.node.st_dev;
  }
  const struct stat& master = ends.master.st;
  if (name != "ptmx" || ::stat(link.c_str(), &st) != 0 || st.st_dev != master.st_dev ||
      st.st_ino != master.st_ino) {
    return false;
  }
  const auto text = ReadFileAt(
      AT_FDCWD, (link.parent_path().parent_path() / "fdinfo" / link.filename()).string());
  return !text.ok() ||
         text->find("tty-index:\t" + std::to_string(ends.index) + "\n") != std::string::npos;
}

// On a terminal of our own: without CAP_SYS_ADMIN it depends.
bool MayPutIn() {
  const UniqueFd master(::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC));
  return master && ::ioctl(master.get(), TIOCSTI, "") == 0;
}

bool IsAsync(const TerminalEnds& ends, const FileDumpContext& context) {
  return (ends.master.flags & O_ASYNC) != 0 ||
         std::ranges::any_of(context.files(), [&](const OpenFile& file) {
           return (file.flags & O_ASYNC) != 0 && S_ISCHR(file.st.st_mode) &&
                  file.st.st_rdev == ends.node.st_rdev;
         });
}

// Why what waits cannot be taken and put back as it was; "" when it can. `slave`: our own open file.
Result<std::string> Hindrance(const TerminalEnds& ends, const termios2& settings, int slave,
                              FileDumpContext& context) {
  const int master = ends.master.borrowed.get();
  if (ends.locked_settings) return std::string("its settings are locked");
  if ((settings.c_lflag & EXTPROC) != 0) return std::string("it is in the mode EXTPROC");
  if (IsAsync(ends, context)) return std::string("it raises SIGIO");
  if (!MayPutIn()) return std::string("CAP_SYS_ADMIN is needed to put it in");
  ASSIGN_OR_RETURN(const short status, PollNow(master, POLLPRI));
  if (ends.packets && (status & POLLPRI) != 0)
    return std::string("the status of a packet waits before it");
  if (!IsPlain(settings) && Waiting(slave) > kMuch) {
    return std::string("so much is typed that some of it may not have been looked at");
  }
  ASSIGN_OR_RETURN(const pid_t holder,
                   HolderOutside(context, [&ends](const auto& link) { return IsEnd(link, ends); }));
  if (holder == 0) return std::string();
  return "pid " + std::to_string(holder) + " outside the tree has it open";
}

void NoteLeft(const OpenFile& file, int waiting, const std::string& reason,
              FileDumpContext& context) {
  if (waiting == 0) return;
  context.Note(NameOf(file) + ": " + std::to_string(waiting) +
               " bytes of input that nobody has read will be gone" +
               (reason.empty() ? "" : ": " + reason));
}

void AddQueue(std::uint32_t id, const TerminalQueue& queue, FileDumpContext& context) {
  if (queue.byte_count == 0 && queue.line_count == 0 && !queue.next_is_literal) return;
  image::TtyDataEntry entry;
  entry.set_tty_id(id);
  entry.set_data(std::string(queue.bytes.data(), queue.byte_count));
  entry.set_stasis_as_is(true);
  for (std::size_t i = 0; i < queue.line_count; ++i) entry.add_stasis_lines(queue.lines[i]);
  if (queue.next_is_literal) entry.set_stasis_next_is_literal(true);
  context.AddRecord("tty-data", entry.SerializeAsString(), "");
}

Status DumpBoth(const TerminalEnds& ends, const termios2& settings, int slave,
                FileDumpContext& context) {
  Exchange exchange(settings);
  exchange.master = ends.master.borrowed.get();
  exchange.slave = slave;
  exchange.packets = ends.packets;
  RETURN_IF_ERROR(Annotate(SurvivingStep("take and put back what waits at a terminal",
                                         [&] { return exchange.TakeAndPutBack(); }),
                           NameOf(ends.master)));
  AddQueue(ends.index << 1, exchange.at_slave, context);
  AddQueue(ends.index << 1 | 1, exchange.at_master, context);
  return OkStatus();
}

// ---- restore ----

// Lines of CRIU's data, which does not say how they ended.
Status ToLines(const image::TtyDataEntry& entry, TerminalQueue& queue) {
  std::size_t end = 0;
  const auto add = [&](std::size_t length) {
    queue.lines[queue.line_count++] = static_cast<std::uint32_t>(length);
    end += length;
  };
  if (entry.stasis_as_is()) {
    for (const std::uint32_t length : entry.stasis_lines()) {
      if (length > queue.byte_count - end || queue.line_count == queue.lines.size()) {
        return DataLoss("tty-data: lines that are longer than what waits");
      }
      add(length);
    }
    return OkStatus();
  }
  const std::string& data = entry.data();
  for (std::size_t feed; (feed = data.find('\n', end)) != std::string::npos;) add(feed + 1 - end);
  return OkStatus();
}

// In packet mode CRIU has read the byte that comes first, too.
Result<TerminalQueue> ToQueue(image::TtyDataEntry entry, bool canonical, bool packets) {
  TerminalQueue queue = TerminalQueue::WithRoom();
  if (entry.data().size() > kMostImageBytes) {
    return DataLoss("tty-data: more than a terminal holds");
  }
  if (packets && !entry.stasis_as_is() && entry.data().starts_with('\0')) {
    entry.mutable_data()->erase(0, 1);
  }
  std::ranges::copy(entry.data(), queue.bytes.begin());
  queue.byte_count = entry.data().size();
  queue.next_is_literal = canonical && entry.stasis_next_is_literal();
  if (canonical) RETURN_IF_ERROR(ToLines(entry, queue));
  return queue;
}

Result<std::optional<image::TtyDataEntry>> DataOf(std::uint32_t id, FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const auto records, context.Records("tty-data"));
  for (const FileRestoreContext::Record& record : records) {
    image::TtyDataEntry entry;
    if (!entry.ParsePartialFromString(record.message) || !entry.IsInitialized()) {
      return DataLoss("tty-data: a record does not parse");
    }
    if (entry.tty_id() == id) return entry;
  }
  return std::nullopt;
}

}  // namespace

Status DumpTerminalData(const TerminalEnds& ends, FileDumpContext& context) {
  const int master = ends.master.borrowed.get();
  const auto leave = [&](const std::string& reason) {
    NoteLeft(ends.master, Waiting(master), reason, context);
    if (ends.slave != nullptr)
      NoteLeft(*ends.slave, Waiting(ends.slave->borrowed.get()), reason, context);
    return OkStatus();
  };
  if (ends.slave == nullptr && !ends.hung_up) return leave("its other end is not open in the tree");
  // An open file of our own, so that those of the tree keep their flags. Of a tree that runs it would put off that
  // the other end hangs up.
  UniqueFd ours;
  int slave = ends.slave != nullptr ? ends.slave->borrowed.get() : -1;
  if (!context.only_looks()) {
    ours.Reset(::ioctl(master, kOpenPeer, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    slave = ours.get();
  }
  if (context.only_looks() && slave < 0) return OkStatus();
  termios2 settings = {};
  if (slave < 0 || ::ioctl(slave, TCGETS2, &settings) != 0) return leave("it is locked");
  ASSIGN_OR_RETURN(const std::string hindrance, Hindrance(ends, settings, slave, context));
  if (!hindrance.empty()) return leave(hindrance);
  ASSIGN_OR_RETURN(const short ready, PollNow(slave, POLLOUT));
  if ((ready & POLLOUT) == 0 && Waiting(master) < kMuch) {
    context.Note(NameOf(ends.master) +
                 ": output is stopped there (TCOOFF, Ctrl-S), and would go on after a restore");
  }
  if (context.only_looks()) return OkStatus();
  return DumpBoth(ends, settings, slave, context);
}

Status RestoreTerminalData(int master, int slave, const image::TtyInfoEntry& info,
                           FileRestoreContext& context) {
  const std::uint32_t index = info.id() >> 1;
  ASSIGN_OR_RETURN(const auto at_slave, DataOf(index << 1, context));
  ASSIGN_OR_RETURN(const auto at_master, DataOf(index << 1 | 1, context));
  termios2 settings = {};
  if ((!at_slave && !at_master) || slave < 0) return OkStatus();
  if (::ioctl(slave, TCGETS2, &settings) != 0) return SyscallError(errno, "TCGETS2");
  if ((settings.c_lflag & EXTPROC) != 0 || !MayPutIn()) {
    context.Note("/dev/pts/" + std::to_string(index) +
                 ": what was not read there is gone: CAP_SYS_ADMIN is needed to put it in");
    return OkStatus();
  }
  Exchange exchange(settings);
  exchange.master = master;
  exchange.slave = slave;
  const bool canonical = exchange.quiet.canonical();
  if (at_slave) {
    ASSIGN_OR_RETURN(exchange.at_slave, ToQueue(*at_slave, canonical, false));
  }
  if (at_master) {
    ASSIGN_OR_RETURN(exchange.at_master, ToQueue(*at_master, false, info.packet_mode()));
  }
  if (const int error = exchange.PutQuietly(); error != 0) {
    return SyscallError(error, "put in what waits at a terminal");
  }
  return OkStatus();
}

}  // namespace stasis::engine
