#include "engine/ipc/ipc_namespace.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ipc.h>

#include <cerrno>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/ipc/ipc_objects.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr int kAttempts = 8;
constexpr unsigned kModeBits = 01777;  // with SHM_DEST

}  // namespace

Status InIpcNamespace(pid_t pid, const std::function<Status()>& step) {
  ASSIGN_OR_RETURN(const UniqueFd ns,
                   OpenAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/ns/ipc", O_RDONLY));
  return InNamespace(ns.get(), CLONE_NEWIPC, step);
}

Result<std::vector<int>> ListObjects(const std::string& kind) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/sysvipc/" + kind));
  std::string_view rest = text;
  text::CutLine(rest);  // the titles
  std::vector<int> ids;
  while (!rest.empty()) {
    const std::vector<std::string_view> object = text::Words(text::CutLine(rest));
    if (object.size() < 2) return DataLoss("/proc/sysvipc/" + kind + " has another form");
    ASSIGN_OR_RETURN(ids.emplace_back(), text::Number<int>(object[1]));
  }
  return ids;
}

image::IpcDescEntry DescribeObject(const ipc_perm& permissions, int id, const UserIds& ids) {
  image::IpcDescEntry description;
  description.set_key(static_cast<std::uint32_t>(permissions.__key));
  description.set_uid(ids.users.ToInside(permissions.uid));
  description.set_gid(ids.groups.ToInside(permissions.gid));
  description.set_cuid(ids.users.ToInside(permissions.cuid));
  description.set_cgid(ids.groups.ToInside(permissions.cgid));
  description.set_mode(permissions.mode & kModeBits);
  description.set_id(static_cast<std::uint32_t>(id));
  return description;
}

Status SetOwner(const image::IpcDescEntry& description, const UserIds& ids, ipc_perm& permissions) {
  ASSIGN_OR_RETURN(permissions.uid, ids.users.ToOutside(description.uid()));
  ASSIGN_OR_RETURN(permissions.gid, ids.groups.ToOutside(description.gid()));
  permissions.mode = static_cast<unsigned short>(description.mode() & 0777);
  return OkStatus();
}

Status MakeWithId(pid_t pid, int id, const ObjectMaker& maker) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    // The sysctl is that of the namespace of who opens it.
    RETURN_IF_ERROR(InIpcNamespace(pid, [&]() -> Status {
      ASSIGN_OR_RETURN(const UniqueFd fd,
                       OpenAt(AT_FDCWD, "/proc/sys/kernel/" + maker.next_id, O_WRONLY));
      return WriteAll(fd.get(), std::to_string(id));
    }));
    const Result<std::uint64_t> made = maker.make();
    if (ErrnoOf(made.status()) == EEXIST) {
      return AlreadyExists(maker.name +
                           ": the key belongs to another object here; remove that (ipcrm), or "
                           "restore in an IPC namespace of its own");
    }
    RETURN_IF_ERROR(made.status());
    if (*made == static_cast<std::uint64_t>(id)) return OkStatus();
    // Somebody else of the namespace was given the id that we had chosen.
    RETURN_IF_ERROR(maker.remove(*made));
  }
  return AlreadyExists(maker.name + ": the id was taken by another object again and again");
}

}  // namespace stasis::engine
