// Source  autofs_show_options() in fs/autofs/inode.c, waitq.c; kill(2); tested on 6.18
// Rule    What waits in the pipe, or was read and not answered yet, is known by a number that a new mount does not know.
//         Who waits in the tree does so in a way that keeps it from being frozen
// Rule    A daemon that ended leaves a mount that is silenced when it asks the next time
#include <fcntl.h>
#include <poll.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "engine/base/io.h"
#include "engine/dump_files.h"
#include "engine/files/description.h"
#include "engine/mounts/autofs.h"

namespace stasis::engine {

bool FileDumper::IsOfAutofs(const OpenFile& file) const {
  if (namespaces_ == nullptr) return false;
  return std::ranges::any_of(namespaces_->mounts(), [&](const image::MntEntry* mount) {
    if (!IsOwnAutofs(*mount)) return false;
    const Result<AutofsOptions> options = ParseAutofs(mount->options());
    return options.ok() && options->pipe == file.st.st_ino;
  });
}

Status FileDumper::FindDaemon(AutofsOptions& options) const {
  image::AutofsEntry& entry = options.entry;
  const pid_t group = entry.pgrp();
  const std::span<const FrozenProcess> processes = tree_.processes();
  const auto daemon = std::ranges::find_if(processes, [&](const FrozenProcess& process) {
    return process.pid == group && !process.zombie;
  });
  if (daemon == processes.end()) {
    const bool is_gone = ::kill(-group, 0) != 0 && errno == ESRCH;
    entry.set_fd(-1);
    return is_gone
               ? OkStatus()
               : Unimplemented("its daemon, pid " + std::to_string(group) + ", is not in the tree");
  }
  const std::uint32_t table = table_ids_[static_cast<std::size_t>(daemon - processes.begin())];
  int reader = -1;
  bool has_writer = false;
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    if (table_ids_[i] != table) continue;
    for (const Descriptor& descriptor : tables_[i]) {
      const OpenFile& file = files_[descriptor.file];
      if (!S_ISFIFO(file.st.st_mode) || file.st.st_ino != *options.pipe) continue;
      const bool writes = (file.flags & O_ACCMODE) == O_WRONLY;
      if (writes) has_writer = has_writer || descriptor.fd == entry.fd();
      if (writes) continue;
      reader = descriptor.fd;
      ASSIGN_OR_RETURN(const short state, PollNow(file.borrowed.get(), POLLIN));
      if ((state & POLLIN) != 0) {
        return FailedPrecondition("its daemon, pid " + std::to_string(daemon->ns_pid) +
                                  ", has just been asked to mount or unmount; try again");
      }
    }
  }
  if (reader < 0) {
    return Unimplemented("it is served by another process than the first of its group, pid " +
                         std::to_string(daemon->ns_pid));
  }
  entry.set_pgrp(daemon->ns_pid);
  if (!has_writer) entry.set_read_fd(reader);
  return OkStatus();
}

Status FileDumper::DumpAutofs() {
  if (namespaces_ == nullptr) return OkStatus();
  for (const image::MntEntry* mount : namespaces_->mounts()) {
    if (!IsOwnAutofs(*mount) || autofs_.contains(mount->root_dev())) continue;
    ASSIGN_OR_RETURN(AutofsOptions options, ParseAutofs(mount->options()));
    if (options.entry.fd() >= 0 && options.pipe) {
      RETURN_IF_ERROR(Annotate(FindDaemon(options), "autofs at " + mount->mountpoint()));
    }
    autofs_[mount->root_dev()] = options.entry;
  }
  return OkStatus();
}

}  // namespace stasis::engine
