// Source  cgroups(7), cgroup_namespaces(7), fsopen(2), proc_pid_cgroup(5); tested on 6.18
// Rule    fsmount(2) of a hierarchy that exists gives its root, in our cgroup namespace, mounted nowhere: it
//         goes with its descriptor.
// Rule    A container's cgroup is the root of its cgroup namespace, or else where its first process is. What
//         was put into another one by the container itself is below.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/image/image_file.h"
#include "engine/proc/text.h"
#include "engine/tasks/cgroup_settings.h"
#include "engine/tasks/cgroups.h"

namespace stasis::engine {
namespace {

constexpr int kMaxDepth = 32;
constexpr int kMaxFolders = 1 << 14;

Result<CgroupSet> ReadSet(int task_fd, const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(task_fd, path));
  return ParseCgroups(text);
}

Result<bool> SameNamespace(int task_fd, const char* name) {
  struct stat ours = {}, theirs = {};
  const std::string link = std::string("ns/") + name;
  if (::fstatat(AT_FDCWD, ("/proc/thread-self/" + link).c_str(), &ours, 0) != 0 ||
      ::fstatat(task_fd, link.c_str(), &theirs, 0) != 0) {
    return SyscallError(errno, "stat " + link);
  }
  return ours.st_ino == theirs.st_ino;
}

// `set` as we see it, without what the same task sees of it from within its own cgroup namespace.
Result<CgroupSet> RootOfNamespace(const FrozenProcess& process, CgroupSet set) {
  ASSIGN_OR_RETURN(const bool same, SameNamespace(process.proc.get(), "cgroup"));
  if (same) return set;
  ASSIGN_OR_RETURN(const UniqueFd ns, OpenAt(process.proc.get(), "ns/cgroup", O_RDONLY));
  CgroupSet inside;
  RETURN_IF_ERROR(InNamespace(ns.get(), CLONE_NEWCGROUP, [&]() -> Status {
    ASSIGN_OR_RETURN(inside, ReadSet(process.proc.get(), "cgroup"));
    return OkStatus();
  }));
  for (CgroupMember& member : set) {
    const std::string* const path = PathIn(inside, member.controllers);
    if (path == nullptr || *path == "/" || !member.path.ends_with(*path)) continue;
    member.path.resize(member.path.size() - path->size());
    if (member.path.empty()) member.path = "/";
  }
  return set;
}

// Folders of cgroups below `parent_fd`, in the order of their names.
Result<std::vector<std::string>> FoldersIn(int parent_fd) {
  std::vector<std::string> names;
  std::error_code error;
  const std::string path = "/proc/thread-self/fd/" + std::to_string(parent_fd);
  auto entry = std::filesystem::directory_iterator(path, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    if (entry->is_directory(error)) names.push_back(entry->path().filename());
  }
  if (error) return SyscallError(error.value(), "list a cgroup");
  std::ranges::sort(names);
  return names;
}

Status ReadFolder(int folder_fd, const UserIds& ids, image::CgroupDirEntry& entry, int depth,
                  int& count) {
  if (depth > kMaxDepth || ++count > kMaxFolders) return ResourceExhausted("too many cgroups");
  RETURN_IF_ERROR(ReadCgroupSettings(folder_fd, ids, entry));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, FoldersIn(folder_fd));
  for (const std::string& name : names) {
    Result<UniqueFd> child = OpenAt(folder_fd, name, O_RDONLY | O_DIRECTORY);
    if (child.status().code() == StatusCode::kNotFound) continue;  // somebody else's, and gone
    RETURN_IF_ERROR(child.status());
    image::CgroupDirEntry& below = *entry.add_children();
    below.set_dir_name(name);
    RETURN_IF_ERROR(ReadFolder(child->get(), ids, below, depth + 1, count));
  }
  return OkStatus();
}

Status Configure(int fs_fd, unsigned command, const char* key, const char* value) {
  if (::syscall(SYS_fsconfig, fs_fd, command, key, value, 0) == 0) return OkStatus();
  return SyscallError(errno, std::string("fsconfig ") + (key == nullptr ? "" : key));
}

}  // namespace

Result<UniqueFd> OpenHierarchy(const std::string& controllers) {
  const UniqueFd fs(static_cast<int>(
      ::syscall(SYS_fsopen, controllers.empty() ? "cgroup2" : "cgroup", FSOPEN_CLOEXEC)));
  if (!fs) {
    return SyscallError(errno, "fsopen of a cgroup hierarchy");
  }
  std::string_view rest = controllers;
  while (!rest.empty()) {
    const std::string word(text::Cut(rest, ','));
    if (word.starts_with("name=")) {
      RETURN_IF_ERROR(Configure(fs.get(), FSCONFIG_SET_STRING, "name", word.c_str() + 5));
      if (controllers == word) {
        RETURN_IF_ERROR(Configure(fs.get(), FSCONFIG_SET_FLAG, "none", nullptr));
      }
    } else {
      RETURN_IF_ERROR(Configure(fs.get(), FSCONFIG_SET_FLAG, word.c_str(), nullptr));
    }
  }
  RETURN_IF_ERROR(Annotate(Configure(fs.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr),
                           "cgroup hierarchy \"" + controllers + "\""));
  UniqueFd root(static_cast<int>(::syscall(SYS_fsmount, fs.get(), FSMOUNT_CLOEXEC, 0)));
  if (!root) {
    return SyscallError(errno, "fsmount of cgroup hierarchy \"" + controllers + "\"");
  }
  // What fsmount(2) gives is a path alone (O_PATH).
  return OpenAt(root.get(), ".", O_RDONLY | O_DIRECTORY);
}

Result<CgroupDumper> CgroupDumper::Create(const FrozenProcess& root, const Options& options) {
  CgroupDumper dumper;
  dumper.ignore_ = options.manage_cgroups == ManageCgroups::kIgnore;
  if (dumper.ignore_) return dumper;
  ASSIGN_OR_RETURN(dumper.ids_, UserIds::Of(root.proc.get()));
  ASSIGN_OR_RETURN(const bool same_pid, SameNamespace(root.proc.get(), "pid"));
  ASSIGN_OR_RETURN(const bool same_mnt, SameNamespace(root.proc.get(), "mnt"));
  dumper.is_container_ = !same_pid || !same_mnt;
  if (dumper.is_container_) {
    ASSIGN_OR_RETURN(CgroupSet set, ReadSet(root.proc.get(), "cgroup"));
    ASSIGN_OR_RETURN(dumper.base_, RootOfNamespace(root, std::move(set)));
  } else {
    ASSIGN_OR_RETURN(dumper.base_, ReadSet(AT_FDCWD, "/proc/thread-self/cgroup"));
  }
  ASSIGN_OR_RETURN(const bool same_cgroup, SameNamespace(root.proc.get(), "cgroup"));
  if (!same_cgroup) {
    ASSIGN_OR_RETURN(CgroupSet set, ReadSet(root.proc.get(), "cgroup"));
    ASSIGN_OR_RETURN(dumper.namespace_root_, RootOfNamespace(root, std::move(set)));
  }
  dumper.sets_[dumper.base_] = 1;
  return dumper;
}

Status CgroupDumper::Add(pid_t tid, const std::string& cgroups) {
  if (ignore_) return OkStatus();
  auto known = by_text_.find(cgroups);
  if (known == by_text_.end()) {
    ASSIGN_OR_RETURN(CgroupSet set, ParseCgroups(cgroups));
    const auto number = static_cast<std::uint32_t>(sets_.size() + 1);
    known =
        by_text_.emplace(cgroups, sets_.try_emplace(std::move(set), number).first->second).first;
  }
  of_thread_[tid] = known->second;
  return OkStatus();
}

// The uppermost cgroups to keep in one hierarchy. Of a container all that lies between its own and those of
// its tasks, on the host those of the tasks and what is below.
std::vector<std::string> CgroupDumper::TopsOf(const std::string& controllers) const {
  const std::string* const base = PathIn(base_, controllers);
  std::vector<std::string> tops;
  for (const auto& [set, number] : sets_) {
    const std::string* const path = PathIn(set, controllers);
    if (path == nullptr || base == nullptr || *path == *base || *path == "/") continue;
    const char* const below = Below(*base, *path);
    if (!is_container_) {
      tops.push_back(*path);
    } else if (below != nullptr) {
      const std::string_view rest = std::string_view(below).substr(1);
      tops.push_back((*base == "/" ? "" : *base) + "/" +
                     std::string(rest.substr(0, rest.find('/'))));
    }
  }
  std::ranges::sort(tops);
  std::vector<std::string> uppermost;
  for (const std::string& path : tops) {
    const bool inside = std::ranges::any_of(
        uppermost, [&](const std::string& top) { return Below(top, path) != nullptr; });
    if (!inside) uppermost.push_back(path);
  }
  return uppermost;
}

Status CgroupDumper::ReadController(const std::string& controllers,
                                    const std::vector<std::string>& tops) {
  ASSIGN_OR_RETURN(const UniqueFd root, OpenHierarchy(controllers));
  image::CgControllerEntry& controller = *entry_.add_controllers();
  std::string_view rest = controllers;
  do {
    controller.add_cnames(std::string(text::Cut(rest, ',')));
  } while (!rest.empty());
  int count = 0;
  const auto read = [&](const std::string& path) -> Status {
    image::CgroupDirEntry& entry = *controller.add_dirs();
    entry.set_dir_name(path);
    ASSIGN_OR_RETURN(const UniqueFd folder, OpenAt(root.get(), "." + path, O_RDONLY | O_DIRECTORY));
    return ReadFolder(folder.get(), ids_, entry, 0, count);
  };
  for (const std::string& path : tops) {
    RETURN_IF_ERROR(
        Annotate(read(path), "cgroup " + path + " of hierarchy \"" + controllers + "\""));
  }
  return OkStatus();
}

Status CgroupDumper::Read(std::vector<DumpedProcess>& processes) {
  const bool has_namespace = !is_container_ && !namespace_root_.empty();
  if (ignore_ || (sets_.size() == 1 && !has_namespace)) return OkStatus();
  for (DumpedProcess& process : processes) {
    if (process.zombie) continue;
    for (DumpedThread& thread : process.threads) {
      const std::uint32_t number = of_thread_[thread.frozen->tid()];
      thread.core.mutable_thread_core()->set_cg_set(number);
      if (&thread == &process.threads.front()) thread.core.mutable_tc()->set_cg_set(number);
    }
  }
  std::map<std::uint32_t, const CgroupSet*> by_number;
  for (const auto& [set, number] : sets_) by_number[number] = &set;
  for (const auto& [number, set] : by_number) {
    image::CgSetEntry& entry = *entry_.add_sets();
    entry.set_id(number);
    for (const CgroupMember& member : *set) {
      image::CgMemberEntry& place = *entry.add_ctls();
      place.set_name(member.controllers);
      place.set_path(member.path);
      const std::string* const root = PathIn(namespace_root_, member.controllers);
      if (root != nullptr && *root != "/" && Below(*root, member.path) != nullptr) {
        place.set_cgns_prefix(static_cast<std::uint32_t>(root->size()));
      }
    }
  }
  for (const CgroupMember& member : base_) {
    const std::vector<std::string> tops = TopsOf(member.controllers);
    if (!tops.empty()) RETURN_IF_ERROR(ReadController(member.controllers, tops));
  }
  return OkStatus();
}

Status CgroupDumper::WriteImage(image::InventoryEntry& inventory, ImageSink& sink) const {
  if (entry_.sets_size() == 0) return OkStatus();
  inventory.set_root_cg_set(1);
  return PutOne(sink, ImageName("cgroup"), "cgroup", entry_);
}

}  // namespace stasis::engine
