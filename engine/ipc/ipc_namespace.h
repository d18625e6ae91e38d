// An IPC namespace, and objects with chosen ids in it, ipc_namespaces(7).
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

#include "engine/base/status.h"
#include "engine/base/user_ids.h"
#include "engine/image/schema/namespaces.pb.h"

struct ipc_perm;

namespace stasis::engine {

/// Runs `step` in the IPC namespace of `pid`, on another thread.
Status InIpcNamespace(pid_t pid, const std::function<Status()>& step);

/// Owner, mode and key of object `id`, as in the user namespace of `ids`.
image::IpcDescEntry DescribeObject(const ipc_perm& permissions, int id, const UserIds& ids);

/// Owner and mode for IPC_SET. FailedPrecondition: who had it has no number in `ids`.
Status SetOwner(const image::IpcDescEntry& description, const UserIds& ids, ipc_perm& permissions);

/// How objects of a kind are made and removed in a process under restore.
struct ObjectMaker {
  std::string name;     ///< For messages: "System V semaphores 5".
  std::string next_id;  ///< The sysctl that chooses the id: "sem_next_id".
  std::function<Result<std::uint64_t>()> make;
  std::function<Status(std::uint64_t id)> remove;
};

/// Makes an object with `id` in the namespace of `pid`. AlreadyExists: the key is another's, or others take
/// the id again and again. The sysctl holds for the next object of the namespace, whoever makes it
/// (ipc_idr_alloc() in ipc/util.c; CONFIG_CHECKPOINT_RESTORE).
Status MakeWithId(pid_t pid, int id, const ObjectMaker& maker);

}  // namespace stasis::engine
