// Source  ioctl_tty(2) TIOCGSID, TIOCNOTTY, proc_pid_stat(5) tty_nr; tested on 6.18
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "engine/dump_files.h"
#include "engine/files/terminal_settings.h"

namespace stasis::engine {

// The terminal that controls the root's session may be its starter's: a new one takes its place. That of
// another session must have its other end in the tree, or be one of the machine's that is open in the tree.
Status FileDumper::CheckTerminals() const {
  std::set<pid_t> controlled;
  std::set<std::pair<dev_t, pid_t>> of_machine;  // with the process by which it is known
  for (const OpenFile& file : files_) {
    pid_t session = 0;
    if (!S_ISCHR(file.st.st_mode)) continue;
    if (IsMachineTerminal(file.st.st_rdev)) of_machine.emplace(file.st.st_rdev, file.pid);
    const bool is_multiplexer = IsMultiplexer(file.st.st_rdev);
    if (is_multiplexer && ::ioctl(file.borrowed.get(), TIOCGSID, &session) == 0) {
      controlled.insert(session);
    }
  }
  for (const FrozenProcess& process : tree_.processes()) {
    const pid_t session = process.stat.session;
    if (process.zombie) continue;
    const bool is_ours = controlled.contains(session);
    const auto is_named = [&](dev_t terminal) {
      return std::ranges::any_of(tree_.processes(), [&](const FrozenProcess& one) {
        return one.stat.session == session && of_machine.contains({terminal, one.pid});
      });
    };
    if (process.stat.tty_nr != 0 && session != tree_.root().stat.session && !is_ours &&
        !is_named(TerminalDevice(process.stat.tty_nr))) {
      return Unimplemented(
          "pid " + std::to_string(process.ns_pid) + " (" + process.status.name +
          "): its session is not the root's, and is controlled by a terminal whose "
          "other end is outside the tree");
    }
    if (process.stat.tty_nr == 0 && is_ours) {
      return Unimplemented("pid " + std::to_string(process.ns_pid) + " (" + process.status.name +
                           "): it has given up the terminal that controls its session (TIOCNOTTY)");
    }
  }
  return OkStatus();
}

}  // namespace stasis::engine
