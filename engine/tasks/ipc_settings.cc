// Source  proc_sys_kernel(5), mq_overview(7); ipc/ipc_sysctl.c, ipc/mq_sysctl.c; tested on 6.18
// Rule    /proc/sys shows the ipc namespace of the thread that opens it
#include "engine/tasks/ipc_settings.h"

#include <fcntl.h>

#include <array>
#include <utility>

#include "engine/base/io.h"
#include "engine/ipc/ipc_namespace.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

Settings ToText(const image::IpcVarEntry& entry) {
  std::string semaphores;
  for (const std::uint32_t limit : entry.sem_ctls()) {
    semaphores += (semaphores.empty() ? "" : "\t") + std::to_string(limit);
  }
  // Defaults before what they may not be above, and the other way round: each is tried twice.
  return {{"kernel/sem", semaphores},
          {"kernel/msgmax", std::to_string(entry.msg_ctlmax())},
          {"kernel/msgmnb", std::to_string(entry.msg_ctlmnb())},
          {"kernel/msgmni", std::to_string(entry.msg_ctlmni())},
          {"kernel/shmmax", std::to_string(entry.shm_ctlmax())},
          {"kernel/shmall", std::to_string(entry.shm_ctlall())},
          {"kernel/shmmni", std::to_string(entry.shm_ctlmni())},
          {"kernel/shm_rmid_forced", std::to_string(entry.shm_rmid_forced())},
          {"fs/mqueue/queues_max", std::to_string(entry.mq_queues_max())},
          {"fs/mqueue/msg_max", std::to_string(entry.mq_msg_max())},
          {"fs/mqueue/msgsize_max", std::to_string(entry.mq_msgsize_max())},
          {"fs/mqueue/msg_default",
           entry.mq_msg_default() != 0 ? std::to_string(entry.mq_msg_default()) : ""},
          {"fs/mqueue/msgsize_default",
           entry.mq_msgsize_default() != 0 ? std::to_string(entry.mq_msgsize_default()) : ""}};
}

bool Has(const std::string& path, const std::string& value) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, path);
  return text.ok() && text::Words(text::Trim(*text)) == text::Words(value);
}

}  // namespace

Status RestoreIpcSettings(pid_t pid, const image::IpcVarEntry& settings,
                          std::vector<std::string>& notes) {
  return InIpcNamespace(pid, [&]() -> Status {
    const Settings all = ToText(settings);
    for (const bool again : {false, true}) {
      for (const auto& [name, value] : all) {
        const std::string path = "/proc/sys/" + name;
        if (value.empty() || Has(path, value)) continue;
        const Result<UniqueFd> fd = OpenAt(AT_FDCWD, path, O_WRONLY);
        const Status written = fd.ok() ? WriteAll(fd->get(), value) : fd.status();
        if (!written.ok() && again) {
          notes.push_back("the setting " + name + " of its IPC namespace was " + value +
                          ", and is that of a new one: " + Message(written));
        }
      }
    }
    return OkStatus();
  });
}

}  // namespace stasis::engine
