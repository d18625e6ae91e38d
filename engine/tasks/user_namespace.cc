// Source  user_namespaces(7), setgroups(2), clone(2) CLONE_NEWUSER; map_write() in kernel/user_namespace.c; tested on 6.18
// Rule    Each map is written once, by one write(2), of a process in the parent namespace that has CAP_SETUID (CAP_SETGID)
//         over the new one, and CAP_SETFCAP where its own user 0 is mapped (Linux 5.12). The second column is then an id
//         of the writer's namespace. At most 340 lines, which do not overlap.
// Rule    The first process has all capabilities in the namespace, but loses them when it executes a program, unless it
//         is user 0 there by then.
// Rule    Namespaces that a process makes are owned by its user namespace (namespaces(7)): all others of the tree are made by
//         its root, in here.
#include "engine/tasks/user_namespace.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/namespaces.pb.h"

namespace stasis::engine {
namespace {

constexpr int kMostExtents = 340;  // UID_GID_MAP_MAX_EXTENTS

using Entries = google::protobuf::RepeatedPtrField<image::UidGidExtent>;

void ToImage(const IdMap& map, Entries& entries) {
  for (const IdMap::Extent& extent : map.extents()) {
    image::UidGidExtent& entry = *entries.Add();
    entry.set_first(extent.inside);
    entry.set_lower_first(extent.outside);
    entry.set_count(extent.count);
  }
}

Result<IdMap> FromImage(const Entries& entries) {
  if (entries.size() > kMostExtents) return DataLoss("userns: a map of too many lines");
  std::vector<IdMap::Extent> extents;
  for (const image::UidGidExtent& entry : entries) {
    extents.push_back({entry.first(), entry.lower_first(), entry.count()});
  }
  return IdMap::Of(std::move(extents));
}

Status WriteMap(const std::string& path, const IdMap& map) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenAt(AT_FDCWD, path, O_WRONLY));
  std::string text;
  for (const IdMap::Extent& extent : map.extents()) {
    text += std::to_string(extent.inside) + " " + std::to_string(extent.outside) + " " +
            std::to_string(extent.count) + "\n";
  }
  return Annotate(WriteAll(fd.get(), text), path);
}

}  // namespace

Status CheckUserNamespace(const UserIds& ids) {
  if (ids.users.ToOutside(0).ok() && ids.groups.ToOutside(0).ok()) return OkStatus();
  return Unimplemented(
      "its user namespace has no user 0 or no group 0, and cannot be made again without");
}

Status WriteUserNamespace(const UserIds& ids, std::uint32_t number, ImageSink& sink) {
  image::UsernsEntry entry;
  ToImage(ids.users, *entry.mutable_uid_map());
  ToImage(ids.groups, *entry.mutable_gid_map());
  return PutOne(sink, ImageName("userns", number), "userns", entry);
}

Result<std::optional<UserIds>> SavedUserNamespace(const CheckpointImages& images,
                                                  const ImageSource& source) {
  const std::uint32_t dumper = images.inventory.root_ids().user_ns_id();
  const std::uint32_t tree = images.processes.front().ids.user_ns_id();
  if (dumper == 0 || tree == 0 || dumper == tree) return std::nullopt;
  ASSIGN_OR_RETURN(const auto entry,
                   ReadOne<image::UsernsEntry>(source, ImageName("userns", tree), "userns"));
  UserIds ids;
  ASSIGN_OR_RETURN(ids.users, FromImage(entry.uid_map()));
  ASSIGN_OR_RETURN(ids.groups, FromImage(entry.gid_map()));
  RETURN_IF_ERROR(CheckUserNamespace(ids));
  return ids;
}

Status WriteMaps(pid_t pid, const UserIds& ids) {
  const std::string folder = "/proc/" + std::to_string(pid);
  RETURN_IF_ERROR(WriteMap(folder + "/uid_map", ids.users));
  return WriteMap(folder + "/gid_map", ids.groups);
}

int BecomeRootInside() {
  if (::syscall(SYS_setgroups, 0, nullptr) != 0) return errno;
  if (::syscall(SYS_setresgid, 0, 0, 0) != 0) return errno;
  return ::syscall(SYS_setresuid, 0, 0, 0) != 0 ? errno : 0;
}

}  // namespace stasis::engine
