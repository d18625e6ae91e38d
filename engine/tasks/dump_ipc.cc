// Source  ipc_namespaces(7), proc_sys_kernel(5), mq_overview(7), setns(2); tested on 6.18
// Rule    /proc/sys shows the ipc namespace of the thread that opens it, whoever's /proc it is: a
//         thread of ours enters the namespace, reads, and ends there.
// Rule    The objects end with their namespace, and a pod's containers share one: all are dumped with each
//         container, whoever made them, since its processes keep their ids in memory.
#include "engine/tasks/dump_ipc.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/shm.h>

#include <string>
#include <vector>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/ipc/ipc_objects.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using Entry = image::IpcVarEntry;

// One number; 0 where the kernel has no such setting.
template <typename T>
Result<T> Setting(const std::string& name) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, "/proc/sys/" + name);
  if (text.status().code() == StatusCode::kNotFound) return T{0};
  RETURN_IF_ERROR(text.status());
  return text::Number<T>(text::Trim(*text));
}

Result<Entry> ReadSettings() {
  constexpr std::pair<const char*, void (Entry::*)(std::uint32_t)> kSmall[] = {
      {"kernel/msgmax", &Entry::set_msg_ctlmax},
      {"kernel/msgmnb", &Entry::set_msg_ctlmnb},
      {"kernel/msgmni", &Entry::set_msg_ctlmni},
      {"kernel/auto_msgmni", &Entry::set_auto_msgmni},
      {"kernel/shmmni", &Entry::set_shm_ctlmni},
      {"kernel/shm_rmid_forced", &Entry::set_shm_rmid_forced},
      {"fs/mqueue/queues_max", &Entry::set_mq_queues_max},
      {"fs/mqueue/msg_max", &Entry::set_mq_msg_max},
      {"fs/mqueue/msgsize_max", &Entry::set_mq_msgsize_max},
      {"fs/mqueue/msg_default", &Entry::set_mq_msg_default},
      {"fs/mqueue/msgsize_default", &Entry::set_mq_msgsize_default},
  };
  Entry entry;
  for (const auto& [name, set] : kSmall) {
    ASSIGN_OR_RETURN(const auto value, Setting<std::uint32_t>(name));
    (entry.*set)(value);
  }
  constexpr std::pair<const char*, void (Entry::*)(std::uint32_t)> kNextIds[] = {
      {"kernel/msg_next_id", &Entry::set_msg_next_id},
      {"kernel/sem_next_id", &Entry::set_sem_next_id},
      {"kernel/shm_next_id", &Entry::set_shm_next_id},
  };
  for (const auto& [name, set] : kNextIds) {
    const auto next = Setting<std::int32_t>(name);
    if (next.ok() && *next >= 0) (entry.*set)(static_cast<std::uint32_t>(*next));  // -1: any
  }
  ASSIGN_OR_RETURN(const auto segment, Setting<std::uint64_t>("kernel/shmmax"));
  entry.set_shm_ctlmax(segment);
  ASSIGN_OR_RETURN(const auto all, Setting<std::uint64_t>("kernel/shmall"));
  entry.set_shm_ctlall(all);
  ASSIGN_OR_RETURN(const std::string limits, ReadFileAt(AT_FDCWD, "/proc/sys/kernel/sem"));
  for (const std::string_view word : text::Words(text::Trim(limits))) {
    ASSIGN_OR_RETURN(const auto limit, text::Number<std::uint32_t>(word));
    entry.add_sem_ctls(limit);
  }
  return entry;
}

// Those that nobody is attached to; the others are their processes' (memory/system_v.cc).
Result<std::vector<int>> IdleSegments() {
  ASSIGN_OR_RETURN(std::vector<int> ids, ListObjects("shm"));
  std::erase_if(ids, [](int id) {
    shmid_ds segment = {};
    return ::shmctl(id, IPC_STAT, &segment) != 0 || segment.shm_nattch > 0;
  });
  return ids;
}

Status ReadAll(const UserIds& ids, IpcObjects& objects) {
  RETURN_IF_ERROR(DumpSemaphores(ids, objects.semaphores));
  RETURN_IF_ERROR(DumpMessageQueues(ids, objects.messages));
  ASSIGN_OR_RETURN(objects.idle_segments, IdleSegments());
  ASSIGN_OR_RETURN(objects.settings, ReadSettings());
  return OkStatus();
}

}  // namespace

Result<IpcObjects> ReadIpc(int task_fd) {
  ASSIGN_OR_RETURN(const UniqueFd space, OpenAt(task_fd, "ns/ipc", O_RDONLY));
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::Of(task_fd));
  IpcObjects objects;
  RETURN_IF_ERROR(InNamespace(space.get(), CLONE_NEWIPC, [&] { return ReadAll(ids, objects); }));
  return objects;
}

}  // namespace stasis::engine
