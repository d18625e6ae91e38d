// Source  ipc_namespaces(7), proc_sys_kernel(5), mq_overview(7), setns(2); tested on 6.18
// Rule    /proc/sys shows the ipc namespace of the thread that opens it, whoever's /proc it is: a
//         thread of ours enters the namespace, reads, and ends there.
// Rule    /proc/sysvipc shows, below a line of titles, the objects of that namespace, sysvipc(7). They
//         end with it: semaphores and message queues of a container would be gone in another one, and
//         its processes keep their ids in memory. So they are refused, whoever of the pod made them.
// Not here Segments that somebody is attached to (memory/system_v.cc)
#include "engine/tasks/dump_ipc.h"

#include <fcntl.h>
#include <sched.h>

#include <string>
#include <vector>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
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

Status RefuseAll(const char* name, const char* what) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, std::string("/proc/sysvipc/") + name));
  std::string_view rest = text;
  text::CutLine(rest);
  const std::vector<std::string_view> object = text::Words(text::CutLine(rest));
  if (object.size() < 2) return OkStatus();
  return Unimplemented("the IPC namespace has System V " + std::string(what) + " (id " +
                       std::string(object[1]) + "), which cannot be checkpointed yet");
}

Status RefuseUnattachedSegments() {
  constexpr std::size_t kId = 1, kAttached = 6;
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/sysvipc/shm"));
  std::string_view rest = text;
  text::CutLine(rest);
  while (!rest.empty()) {
    const std::vector<std::string_view> segment = text::Words(text::CutLine(rest));
    if (segment.size() <= kAttached || segment[kAttached] != "0") continue;
    return Unimplemented(
        "the IPC namespace has a System V segment that nobody is attached to (id " +
        std::string(segment[kId]) + "), which cannot be checkpointed yet");
  }
  return OkStatus();
}

Result<Entry> ReadAll() {
  RETURN_IF_ERROR(RefuseAll("sem", "semaphores"));
  RETURN_IF_ERROR(RefuseAll("msg", "message queues"));
  RETURN_IF_ERROR(RefuseUnattachedSegments());
  return ReadSettings();
}

}  // namespace

Result<Entry> ReadIpcVariables(int task_fd) {
  ASSIGN_OR_RETURN(const UniqueFd space, OpenAt(task_fd, "ns/ipc", O_RDONLY));
  Result<Entry> entry = Entry();
  RETURN_IF_ERROR(InNamespace(space.get(), CLONE_NEWIPC, [&entry] {
    entry = ReadAll();
    return entry.status();
  }));
  return entry;
}

}  // namespace stasis::engine
