// Source  cgroups(7), cgroup-v2.rst "No Internal Process Constraint"; tested on 6.18
// Rule    A container's tasks go to the same place relative to where its root is; what was not below that
//         cannot be. On the host places are those of the image, or below Options::cgroup_root.
// Rule    A cpuset of version 1 takes nobody before it has processors and memory: settings come first. In
//         version 2 a cgroup that has processes gives its children no controllers: they are moved first.
// Rule    Writing a pid to cgroup.procs moves the whole process; a thread alone is moved by `tasks`, in
//         version 2 by cgroup.threads and within one threaded subtree only.
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/base/io.h"
#include "engine/image/image_file.h"
#include "engine/proc/text.h"
#include "engine/tasks/cgroup_settings.h"
#include "engine/tasks/cgroups.h"

namespace stasis::engine {
namespace {

constexpr int kMaxDepth = 64;

std::string NameOf(const image::CgControllerEntry& controller) {
  std::string name;
  for (const std::string& word : controller.cnames()) name += (name.empty() ? "" : ",") + word;
  return name;
}

std::string Join(const std::string& base, const std::string& below) {
  return base == "/" ? below : base + below;
}

// A hostile path must not lead out of the hierarchy, nor of the container's part of it.
Status CheckPath(const std::string& path) {
  std::string_view rest = path;
  if (!rest.starts_with('/')) return InvalidArgument("cgroup.img: cgroup \"" + path + "\"");
  rest.remove_prefix(1);
  while (!rest.empty()) {
    const std::string_view name = text::Cut(rest, '/');
    if (name.empty() || name == "." || name == ".." || name.find('\0') != name.npos) {
      return InvalidArgument("cgroup.img: cgroup \"" + path + "\"");
    }
  }
  return OkStatus();
}

Result<bool> IsContainer(pid_t placeholder) {
  for (const char* const name : {"pid", "mnt"}) {
    struct stat ours = {}, theirs = {};
    const std::string link = std::string("/ns/") + name;
    if (::stat(("/proc/thread-self" + link).c_str(), &ours) != 0 ||
        ::stat(("/proc/" + std::to_string(placeholder) + link).c_str(), &theirs) != 0) {
      return SyscallError(errno, "stat " + link);
    }
    if (ours.st_ino != theirs.st_ino) return true;
  }
  return false;
}

}  // namespace

Result<std::unique_ptr<CgroupRestorer>> CgroupRestorer::Create(const CheckpointImages& images,
                                                               const ImageSource& source,
                                                               const Options& options,
                                                               pid_t placeholder, Notes& notes) {
  std::unique_ptr<CgroupRestorer> restorer(new CgroupRestorer(options, notes));
  if (options.manage_cgroups == ManageCgroups::kIgnore || !images.inventory.has_root_cg_set()) {
    return restorer;
  }
  Result<image::CgroupEntry> entry =
      ReadOne<image::CgroupEntry>(source, ImageName("cgroup"), "cgroup");
  if (entry.status().code() == StatusCode::kNotFound) return restorer;
  RETURN_IF_ERROR(entry.status());
  restorer->entry_ = *std::move(entry);
  ASSIGN_OR_RETURN(restorer->ids_, UserIds::OfPid(placeholder));
  RETURN_IF_ERROR(restorer->ReadBases(images, placeholder));
  for (const image::CgControllerEntry& controller : restorer->entry_.controllers()) {
    RETURN_IF_ERROR(Annotate(restorer->MakeController(controller),
                             "cgroup hierarchy \"" + NameOf(controller) + "\""));
  }
  return restorer;
}

CgroupRestorer::~CgroupRestorer() {
  for (auto made = made_.rbegin(); made != made_.rend(); ++made) {
    (void)::unlinkat(made->first, made->second.c_str(), AT_REMOVEDIR);  // or somebody else uses it
  }
}

Status CgroupRestorer::ReadBases(const CheckpointImages& images, pid_t placeholder) {
  base_set_ = images.inventory.root_cg_set();
  ASSIGN_OR_RETURN(is_container_, IsContainer(placeholder));
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(placeholder) + "/cgroup"));
  ASSIGN_OR_RETURN(live_, ParseCgroups(text));
  for (const image::CgSetEntry& entry : entry_.sets()) {
    CgroupSet& set = sets_[entry.id()];
    for (const image::CgMemberEntry& member : entry.ctls()) {
      RETURN_IF_ERROR(CheckPath(member.path()));
      if (member.cgns_prefix() > member.path().size()) {
        return InvalidArgument("cgroup.img: a prefix longer than \"" + member.path() + "\"");
      }
      if (member.cgns_prefix() != 0) {
        namespace_roots_[member.name()] = member.path().substr(0, member.cgns_prefix());
      }
      set.push_back({member.name(), member.path()});
    }
  }
  // CRIU's is the set that it ran in itself, which is not among them: a container is where its root is.
  if (is_container_ && !sets_.contains(base_set_)) {
    base_set_ = images.processes.front().leader().core.tc().cg_set();
  }
  return OkStatus();
}

// Null when there is no such hierarchy here, and none is to be made.
Result<CgroupRestorer::Hierarchy*> CgroupRestorer::Find(const std::string& controllers) {
  if (const auto found = hierarchies_.find(controllers); found != hierarchies_.end()) {
    return &found->second;
  }
  const std::string* const live = PathIn(live_, controllers);
  const std::string* const base = PathIn(sets_[base_set_], controllers);
  const bool may_make = !is_container_ && controllers.starts_with("name=");
  if (live == nullptr && !may_make) return nullptr;
  Hierarchy hierarchy;
  hierarchy.live_base = live == nullptr ? "/" : *live;
  hierarchy.image_base = base == nullptr ? "/" : *base;
  ASSIGN_OR_RETURN(hierarchy.root, OpenHierarchy(controllers));
  if (!is_container_) {
    std::string_view root;
    for (const std::string& choice : options_.cgroup_root) {
      const std::size_t colon = choice.rfind(':');
      if (colon == std::string::npos && root.empty()) root = choice;
      if (colon != std::string::npos && choice.substr(0, colon) == controllers) {
        root = std::string_view(choice).substr(colon + 1);
      }
    }
    hierarchy.live_base = root.empty() ? "/" : std::string(root);
    RETURN_IF_ERROR(CheckPath(hierarchy.live_base));
    hierarchy.image_base = "/";
  }
  return &hierarchies_.emplace(controllers, std::move(hierarchy)).first->second;
}

Result<std::string> CgroupRestorer::LivePath(const Hierarchy& hierarchy,
                                             const std::string& path) const {
  RETURN_IF_ERROR(CheckPath(path));
  const char* const below = Below(hierarchy.image_base, path);
  if (below == nullptr) {
    return FailedPrecondition("cgroup " + path + " is not below that of its container, " +
                              hierarchy.image_base);
  }
  if (*below == '\0') return hierarchy.live_base;
  return Join(hierarchy.live_base, below);
}

Status CgroupRestorer::MakeController(const image::CgControllerEntry& controller) {
  const std::string name = NameOf(controller);
  ASSIGN_OR_RETURN(Hierarchy* const hierarchy, Find(name));
  if (hierarchy == nullptr) {
    notes_.push_back("cgroup hierarchy \"" + name + "\" is not here: its cgroups are left out");
    return OkStatus();
  }
  for (const image::CgroupDirEntry& entry : controller.dirs()) {
    // CRIU leaves out the first slash.
    const std::string& name_there = entry.dir_name();
    const Result<std::string> path =
        LivePath(*hierarchy, name_there.starts_with('/') ? name_there : "/" + name_there);
    if (path.status().code() == StatusCode::kFailedPrecondition) {
      notes_.push_back(Message(path.status()));
      continue;
    }
    RETURN_IF_ERROR(path.status());
    RETURN_IF_ERROR(MakeFolder(*hierarchy, entry, *path, name.empty(), 0));
  }
  return OkStatus();
}

// The folders that lead to `path`, from above.
Status CgroupRestorer::Make(const Hierarchy& hierarchy, const std::string& path) {
  const bool may_make = options_.manage_cgroups != ManageCgroups::kNone &&
                        options_.manage_cgroups != ManageCgroups::kProps;
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string upper = "." + path.substr(0, end);
    struct stat st = {};
    if (upper != "./" && ::fstatat(hierarchy.root.get(), upper.c_str(), &st, 0) != 0) {
      if (!may_make) return FailedPrecondition("cgroup " + path.substr(0, end) + " is not there");
      if (::mkdirat(hierarchy.root.get(), upper.c_str(), 0755) != 0) {
        return SyscallError(errno, "make cgroup " + path.substr(0, end));
      }
      made_.emplace_back(hierarchy.root.get(), upper);
    }
    if (end == std::string::npos) return OkStatus();
  }
}

Status CgroupRestorer::MakeFolder(const Hierarchy& hierarchy, const image::CgroupDirEntry& entry,
                                  const std::string& path, bool is_v2, int depth) {
  if (depth > kMaxDepth) return ResourceExhausted("cgroup.img: too deep");
  RETURN_IF_ERROR(CheckPath(path));
  const std::size_t before = made_.size();
  RETURN_IF_ERROR(Make(hierarchy, path));
  const bool is_new = made_.size() != before;
  const ManageCgroups mode = options_.manage_cgroups;
  if (mode == ManageCgroups::kStrict && !is_new) {
    return AlreadyExists("cgroup " + path + " is there already (--manage-cgroups=strict)");
  }
  if (mode == ManageCgroups::kProps || mode == ManageCgroups::kFull || is_new) {
    if (is_v2) {
      later_.push_back({const_cast<Hierarchy*>(&hierarchy), &entry, path});
    } else {
      RETURN_IF_ERROR(Set(hierarchy, entry, path));
    }
    if (is_new) {
      ASSIGN_OR_RETURN(const UniqueFd folder,
                       OpenAt(hierarchy.root.get(), "." + path, O_RDONLY | O_DIRECTORY));
      RETURN_IF_ERROR(Annotate(WriteCgroupOwner(folder.get(), entry, ids_), "cgroup " + path));
    }
  }
  for (const image::CgroupDirEntry& child : entry.children()) {
    if (child.dir_name().find('/') != std::string::npos) {
      return InvalidArgument("cgroup.img: cgroup \"" + child.dir_name() + "\" in " + path);
    }
    RETURN_IF_ERROR(
        MakeFolder(hierarchy, child, Join(path, "/" + child.dir_name()), is_v2, depth + 1));
  }
  return OkStatus();
}

// A setting that this node does not take is noted: limits of another machine may not fit.
Status CgroupRestorer::Set(const Hierarchy& hierarchy, const image::CgroupDirEntry& entry,
                           const std::string& path) {
  ASSIGN_OR_RETURN(const UniqueFd folder,
                   OpenAt(hierarchy.root.get(), "." + path, O_RDONLY | O_DIRECTORY));
  const Status status = WriteCgroupSettings(folder.get(), entry);
  if (!status.ok()) notes_.push_back("cgroup " + path + ": " + Message(status));
  return OkStatus();
}

Status CgroupRestorer::MakeNamespace(RestoredProcess& root, const CheckpointImages& images) {
  const bool had_one =
      images.processes.front().ids.cgroup_ns_id() != images.inventory.root_ids().cgroup_ns_id();
  if (sets_.empty() || is_container_ || !had_one) return OkStatus();
  for (const auto& [controllers, path] : namespace_roots_) {
    ASSIGN_OR_RETURN(Hierarchy* const hierarchy, Find(controllers));
    if (hierarchy != nullptr) {
      RETURN_IF_ERROR(MoveInto(*hierarchy, path, root.pid, "cgroup.procs"));
    }
  }
  return root.remote->Call("unshare the cgroup namespace", SYS_unshare, CLONE_NEWCGROUP).status();
}

Status CgroupRestorer::MoveInto(const Hierarchy& hierarchy, const std::string& image_path,
                                pid_t task, const char* file) {
  const Result<std::string> path = LivePath(hierarchy, image_path);
  if (path.status().code() == StatusCode::kFailedPrecondition) {
    notes_.push_back("task " + std::to_string(task) + ": " + Message(path.status()));
    return OkStatus();
  }
  RETURN_IF_ERROR(path.status());
  RETURN_IF_ERROR(Make(hierarchy, *path));
  ASSIGN_OR_RETURN(const UniqueFd tasks,
                   OpenAt(hierarchy.root.get(), "." + *path + "/" + file, O_WRONLY));
  return Annotate(WriteAll(tasks.get(), std::to_string(task)),
                  "move task " + std::to_string(task) + " into cgroup " + *path);
}

Status CgroupRestorer::MoveTask(std::uint32_t number, pid_t task, const char* file) {
  if (sets_.empty() || (number == base_set_ && !moved_)) return OkStatus();
  const auto set = sets_.find(number);
  if (set == sets_.end()) {
    return InvalidArgument("cgroup.img: no set " + std::to_string(number));
  }
  for (const bool moved = moved_; const CgroupMember& member : set->second) {
    const std::string* const base = PathIn(sets_[base_set_], member.controllers);
    if (base != nullptr && *base == member.path && !moved) continue;
    ASSIGN_OR_RETURN(Hierarchy* const hierarchy, Find(member.controllers));
    if (hierarchy == nullptr) continue;  // noted before
    const bool is_thread = std::string_view(file) == "tasks";
    const char* const name = is_thread && member.controllers.empty() ? "cgroup.threads" : file;
    moved_ = true;
    RETURN_IF_ERROR(Annotate(MoveInto(*hierarchy, member.path, task, name),
                             "cgroup hierarchy \"" + member.controllers + "\""));
  }
  return OkStatus();
}

Status CgroupRestorer::Move(const RestoredProcess& process) {
  const image::TaskCoreEntry& core = process.image->leader().core.tc();
  if (sets_.empty() || !core.has_cg_set()) return OkStatus();
  return Annotate(MoveTask(core.cg_set(), process.pid, "cgroup.procs"),
                  "pid " + std::to_string(process.image->pid()));
}

Status CgroupRestorer::SetLater() {
  for (const Later& later : later_)
    RETURN_IF_ERROR(Set(*later.hierarchy, *later.entry, later.path));
  return OkStatus();
}

Status CgroupRestorer::MoveThreads(const std::vector<RestoredProcess>& processes) {
  if (sets_.empty()) return OkStatus();
  for (const RestoredProcess& process : processes) {
    for (const RestoredProcess::Thread& thread : process.others) {
      const image::ThreadCoreEntry& core = thread.image->core.thread_core();
      const std::uint32_t of_leader = process.image->leader().core.tc().cg_set();
      if (!core.has_cg_set() || core.cg_set() == of_leader) continue;
      RETURN_IF_ERROR(Annotate(MoveTask(core.cg_set(), thread.tracee.tid(), "tasks"),
                               "tid " + std::to_string(thread.image->tid)));
    }
  }
  return OkStatus();
}

}  // namespace stasis::engine
