// Source  proc_sys_kernel(5), mq_overview(7); ipc/ipc_sysctl.c, ipc/mq_sysctl.c; tested on 6.18
// Rule    /proc/sys shows the ipc namespace of the thread that opens it
// Rule    Limits are looked at when an object is made, or grows: one that was there before its limit was lowered stays.
//         With shm_rmid_forced a segment goes with its last attachment (shm_may_destroy() in ipc/shm.c). The number that
//         *_next_id has goes to the next object that is made, and then it is -1: any (ipc_idr_alloc() in ipc/util.c)
#include "engine/tasks/ipc_settings.h"

#include <fcntl.h>

#include <algorithm>
#include <string_view>
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
  const auto next = [](bool has, std::uint32_t id) { return has ? std::to_string(id) : ""; };
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
           entry.mq_msgsize_default() != 0 ? std::to_string(entry.mq_msgsize_default()) : ""},
          {"kernel/msg_next_id", next(entry.has_msg_next_id(), entry.msg_next_id())},
          {"kernel/sem_next_id", next(entry.has_sem_next_id(), entry.sem_next_id())},
          {"kernel/shm_next_id", next(entry.has_shm_next_id(), entry.shm_next_id())}};
}

// What is not to be in force before all objects are there.
bool IsLast(std::string_view name) {
  return name == "kernel/shm_rmid_forced" || name.ends_with("_next_id");
}

bool Has(const std::string& path, const std::string& value) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, path);
  return text.ok() && text::Words(text::Trim(*text)) == text::Words(value);
}

// The new limits where they are higher, number by number.
std::string Higher(const std::string& path, const std::string& value) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, path);
  if (!text.ok()) return value;
  const std::vector<std::string_view> now = text::Words(text::Trim(*text));
  const std::vector<std::string_view> wanted = text::Words(value);
  std::string higher;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto new_limit = text::Number<std::uint64_t>(wanted[i]).value_or(0);
    const auto old_limit =
        i < now.size() ? text::Number<std::uint64_t>(now[i]).value_or(0) : std::uint64_t{0};
    higher += (i == 0 ? "" : "\t") + std::to_string(std::max(new_limit, old_limit));
  }
  return higher;
}

// Who may write its settings: the root of the user namespace that owns it (see AsRootOf).
Status AsRootOfIpc(pid_t pid, const std::function<Status()>& step) {
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::OfPid(pid));
  return InIpcNamespace(pid, [&] { return AsRootOf(ids, step); });
}

}  // namespace

Status RaiseIpcLimits(pid_t pid, const image::IpcVarEntry& settings) {
  return AsRootOfIpc(pid, [&]() -> Status {
    for (const auto& [name, value] : ToText(settings)) {
      if (value.empty() || IsLast(name)) continue;
      const std::string path = "/proc/sys/" + name;
      const Result<UniqueFd> fd = OpenAt(AT_FDCWD, path, O_WRONLY);
      if (fd.ok())
        (void)WriteAll(fd->get(), Higher(path, value));  // else RestoreIpcSettings() notes it
    }
    return OkStatus();
  });
}

Status RestoreIpcSettings(pid_t pid, const image::IpcVarEntry& settings,
                          std::vector<std::string>& notes) {
  return AsRootOfIpc(pid, [&]() -> Status {
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
